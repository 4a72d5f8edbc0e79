"""Where the registry files are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ckptkit.places import home_folders, user_path

_PACKAGE = Path(__file__).resolve().parent.parent


def built_in_path() -> Path:
    """Return the registry that ckptkit comes with: inside the wheel, or at the root of a source tree."""
    inside = _PACKAGE / "registry.yaml"
    return inside if inside.exists() else _PACKAGE.parent / "registry.yaml"


def in_source_tree() -> bool:
    """Whether ckptkit runs from a checkout, whose registry.yaml is there to be edited."""
    return built_in_path().with_name("pyproject.toml").exists()


def environment_files() -> list[Path]:
    """Return the files of ``CKPTKIT_REGISTRY``, which separates them like ``PATH`` does."""
    listed = os.environ.get("CKPTKIT_REGISTRY", "")
    return [user_path(name) for name in listed.split(os.pathsep) if name.strip()]


def registry_files(overlays: Sequence[Path] = ()) -> list[Path]:
    """Every registry file in the order of loading: a later one overrides an earlier one, by id.

    Parameters
    ----------
    overlays : sequence of Path
        The ``--registry`` files, which come after those of ``CKPTKIT_REGISTRY``.
    """
    return [built_in_path(), *environment_files(), *overlays]


def cache_folder() -> Path:
    """Return the folder for the compiled rows: the cache folder that is written to."""
    return home_folders()[0]
