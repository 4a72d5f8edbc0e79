"""``import ckptkit.keras`` registers ckptkit's models with Keras, which then opens files that hold them.

With it ``keras.saving.load_model`` takes what ``ckptkit export --to keras`` wrote: ``moat0-224.keras``, a
folder, or ``hf://ORG/NAME``. Models of plug-ins are registered too. It imports TensorFlow and Keras.
"""

from __future__ import annotations

import warnings

from ckptkit.base.errors import MissingDependencyError
from ckptkit.base.packages import PluginWarning
from ckptkit.base.text import escaped
from ckptkit.families.base import families, get_family

__all__: list[str] = []

for _name in families():
    if "keras" not in get_family(_name).models:
        continue
    if _name in families(plugins=False):
        try:
            get_family(_name).keras_module()
        except MissingDependencyError as _error:
            raise ImportError(str(_error)) from _error
        continue
    try:
        get_family(_name).keras_module()
    except Exception as _error:
        _text = f"the Keras model of family {_name} cannot be imported ({type(_error).__name__}: {_error})"
        warnings.warn(escaped(_text), PluginWarning, stacklevel=2)
