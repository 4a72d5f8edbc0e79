"""A family and a format that ckptkit finds through the entry points in ``pyproject.toml``."""
