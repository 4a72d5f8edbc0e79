"""Reference models with their settings and weights, in any framework."""

from ckptkit.models.create import UNSET, Size, Unset, create_model
from ckptkit.models.loading import Framework, Loaded, framework_named

__all__ = ["UNSET", "Framework", "Loaded", "Size", "Unset", "create_model", "framework_named"]
