"""ckptkit: fetch, verify, convert and prove published checkpoints.

>>> import ckptkit
>>> entry = ckptkit.registry()["moat2-384-noposemb"]
>>> entry.variant, entry.test_resolution
('moat2', 384)

Importing this package imports neither numpy nor a framework; each function loads what it needs.
"""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ckptkit._version import DISTRIBUTION, __version__, strangers

if TYPE_CHECKING:
    from ckptkit.api import (
        calibrate,
        cam,
        convert,
        create_model,
        evaluate,
        export,
        fetch,
        load,
        logs,
        parity,
        plot,
        predict,
        registry,
        verify,
    )

__all__ = [
    "__version__",
    "calibrate",
    "cam",
    "convert",
    "create_model",
    "evaluate",
    "export",
    "fetch",
    "load",
    "logs",
    "parity",
    "plot",
    "predict",
    "registry",
    "verify",
]

_FACE = frozenset(__all__) - {"__version__"}


class _Package(ModuleType):
    """Keeps the functions of the Python face from being hidden by submodules of the same name.

    Importing ``ckptkit.convert`` makes the import system bind the module to the package's attribute
    ``convert``, where users expect the function. ``from ckptkit.convert import …`` reaches the module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FACE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _FACE:
        from ckptkit import api

        value = getattr(api, name)
        setattr(sys.modules[__name__], name, value)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])


sys.modules[__name__].__class__ = _Package

for _folder in strangers():
    from ckptkit.base.text import escaped as _escaped

    warnings.warn(
        f"{_escaped(str(_folder))}: another project called ckptkit is installed, with the same files as "
        f"{DISTRIBUTION}. Run: pip uninstall ckptkit; then install {DISTRIBUTION} again",
        stacklevel=2,
    )
