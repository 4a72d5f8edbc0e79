"""What models cost, what they see and how well they do; torch is imported only when something is computed."""
