"""The registry: every published checkpoint, loaded from YAML, queried, and written back."""
