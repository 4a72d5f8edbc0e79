"""The training logs that are published beside checkpoints: fetched, read, and drawn."""
