"""What every room stands on and what knows no checkpoint: errors, text, files, budgets, tensors."""
