"""Where the registry files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptkit.base.home import listed_paths

_PACKAGE = Path(__file__).resolve().parent.parent


def built_in_path() -> Path:
    """Return the registry that ckptkit comes with: inside the wheel, or at the root of a source tree."""
    inside = _PACKAGE / "registry.yaml"
    return inside if inside.exists() else _PACKAGE.parent / "registry.yaml"


def in_source_tree() -> bool:
    """Whether ckptkit runs from a checkout, whose registry.yaml is there to be edited."""
    return built_in_path().with_name("pyproject.toml").exists()


def environment_files() -> list[Path]:
    """Return the files that ``CKPTKIT_REGISTRY`` lists."""
    return listed_paths("CKPTKIT_REGISTRY")


def registry_files(overlays: Sequence[Path] = ()) -> list[Path]:
    """Every registry file in the order of loading: a later one overrides an earlier one, by id.

    Parameters
    ----------
    overlays : sequence of Path
        The ``--registry`` files, which come after those of ``CKPTKIT_REGISTRY``.
    """
    return [built_in_path(), *environment_files(), *overlays]
