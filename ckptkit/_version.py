"""Which version this is, what its distribution is called, where it comes from, and who else uses its name.

On the package index ``ckptkit`` is another project, with the same import name and command.
"""

from __future__ import annotations

import os
import sys

__version__ = "0.1.0"
DISTRIBUTION = "ckptkit-cli"
REPOSITORY = "https://example.org/ckptkit.git"
"""A placeholder until the repository is public; pyproject.toml and the example workflow have it too."""
DOCUMENTATION = f"{REPOSITORY.removesuffix('.git')}/tree/main/docs"

_AUTHOR = "\nAuthor: The ckptkit authors\n"  # an install of this project from before it was renamed


def strangers() -> list[str]:
    """Metadata folders, in this environment, of another project's distribution that is called ``ckptkit``."""
    found = []
    for place in dict.fromkeys(sys.path):
        try:
            names = os.listdir(place or os.curdir)  # noqa: PTH208 (every import of ckptkit asks)
        except OSError:
            continue
        found += [os.path.join(place, name) for name in names if _is_metadata(name)]  # noqa: PTH118
    return [folder for folder in found if _AUTHOR not in _read(folder)]


def _is_metadata(name: str) -> bool:
    return name.startswith(("ckptkit-", "ckptkit.egg")) and name.endswith((".dist-info", ".egg-info"))


def _read(folder: str) -> str:
    name = "METADATA" if folder.endswith(".dist-info") else "PKG-INFO"
    try:
        with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            return stream.read()
    except OSError:
        return ""
