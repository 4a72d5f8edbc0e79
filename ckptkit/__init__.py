"""ckptkit: fetch, verify, convert and prove published checkpoints.

>>> import ckptkit
>>> entry = ckptkit.registry()["moat2-384-noposemb"]
>>> entry.variant, entry.test_resolution
('moat2', 384)

Importing this package imports neither numpy nor a framework; each function loads what it needs.
"""

from __future__ import annotations

import warnings
from importlib import import_module
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

_FUNCTIONS = frozenset(__all__) - {"__version__"}

for _room in ("convert", "export", "parity", "registry"):
    # A package that is imported for the first time takes its name here. These four are imported now, and the
    # names go to the functions, for good: `from ckptkit.convert.planning import …` still reaches the package.
    import_module(f"{__name__}.{_room}")
    del globals()[_room]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        value = getattr(import_module(f"{__name__}.api"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FUNCTIONS])


for _folder in strangers():
    from ckptkit.base.text import escaped as _escaped

    warnings.warn(
        f"{_escaped(str(_folder))}: another project called ckptkit is installed, with the same files as "
        f"{DISTRIBUTION}. Run: pip uninstall ckptkit; then install {DISTRIBUTION} again",
        stacklevel=2,
    )
