"""The base of every room, independent of checkpoints: errors, text, files, budgets, tensors."""
