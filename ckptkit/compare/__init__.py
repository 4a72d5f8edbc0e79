"""What is in a checkpoint, whether it is whole, and how two of them differ."""
