"""The architecture families: everything that knows a model."""
