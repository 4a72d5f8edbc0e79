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
from typing import TYPE_CHECKING

from ckptkit._version import DISTRIBUTION, __version__, strangers

if TYPE_CHECKING:
    from ckptkit.api import (
        calibrate,
        cam,
        check_rules,
        convert,
        create_model,
        diff,
        evaluate,
        export,
        fetch,
        inspect,
        keep_processes,
        load,
        logs,
        parity,
        plot,
        predict,
        profile,
        registry,
        scan,
        suggest_rules,
        synth,
        transform,
        verify,
    )
    from ckptkit.base.errors import (
        CkptkitError,
        ConversionError,
        FormatError,
        IntegrityError,
        MissingDependencyError,
        NetworkError,
        NotFoundError,
        RegistryError,
        StorageError,
        UnknownModelError,
        UsageError,
    )

__all__ = [
    "CkptkitError",
    "ConversionError",
    "FormatError",
    "IntegrityError",
    "MissingDependencyError",
    "NetworkError",
    "NotFoundError",
    "RegistryError",
    "StorageError",
    "UnknownModelError",
    "UsageError",
    "__version__",
    "calibrate",
    "cam",
    "check_rules",
    "convert",
    "create_model",
    "diff",
    "evaluate",
    "export",
    "fetch",
    "inspect",
    "keep_processes",
    "load",
    "logs",
    "parity",
    "plot",
    "predict",
    "profile",
    "registry",
    "scan",
    "suggest_rules",
    "synth",
    "transform",
    "verify",
]

for _room in ("convert", "export", "parity", "registry"):
    # A package that is imported for the first time takes its name here. These four are imported now, and the
    # names go to the functions, for good: `from ckptkit.convert.planning import …` still reaches the package.
    import_module(f"{__name__}.{_room}")
    del globals()[_room]


if not TYPE_CHECKING:  # a type checker has the imports above, and reports a name that is not among them

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = f"{__name__}.base.errors" if name.endswith("Error") else f"{__name__}.api"
        globals()[name] = value = getattr(import_module(home), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


for _folder in strangers():
    from ckptkit.base.text import escaped as _escaped

    warnings.warn(
        f"{_escaped(str(_folder))}: another project called ckptkit is installed, with the same files as "
        f"{DISTRIBUTION}. Run: pip uninstall ckptkit; then install {DISTRIBUTION} again",
        stacklevel=2,
    )
