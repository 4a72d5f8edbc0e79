"""What other packages add to ckptkit: objects found through the entry points of installed packages.

A package names its objects in its own ``pyproject.toml``. Who asks here knows the built-in objects and asks
for others only: looking through the installed packages takes longer than a short command's own work.
A plug-in that does not load, or is not what its group holds, is a warning that names its package.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ckptkit.base.text import escaped

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class PluginWarning(UserWarning):
    """An installed plug-in cannot be used."""


@lru_cache
def load(group: str, kind: type = object, taken: Collection[str] = ()) -> dict[str, Any]:
    """The usable plug-ins of a group by name; ``taken`` names are not theirs.

    >>> load("ckptkit.no_such_group")
    {}
    """
    found: dict[str, Any] = {}
    for point, plugin in _loaded(group):
        own = getattr(plugin, "name", None)
        if not isinstance(plugin, kind):
            _warn(point, f"is of type {type(plugin).__name__!r}, not {kind.__name__},")
        elif own != point.name:
            _warn(point, f"calls itself {own!r}")
        elif own in taken or own in found:
            _warn(point, "has a name that is taken")
        else:
            found[own] = plugin
    return found


@lru_cache
def _loaded(group: str) -> list[tuple[EntryPoint, Any]]:
    """What a group's entry points lead to, in a steady order, looked up once in a process."""
    from importlib.metadata import entry_points  # which takes a while to import

    loaded = []
    for point in sorted(entry_points(group=group), key=_place):
        try:
            loaded.append((point, point.load()))
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _warn(point, f"cannot be loaded ({reason})")
    return loaded


def forget() -> None:
    """Look again on the next occasion; for tests."""
    load.cache_clear()
    _loaded.cache_clear()


def package_of(point: EntryPoint) -> str:
    """The package that an entry point belongs to, with its version."""
    try:
        assert point.dist is not None
        return f"{point.dist.name} {point.dist.version}"
    except Exception:  # a folder of metadata that is damaged raises KeyError, TypeError or AssertionError
        return f"the package of {point.value}"


def _place(point: EntryPoint) -> tuple[str, str]:
    return point.name, package_of(point)


def _warn(point: EntryPoint, what: str) -> None:
    text = f"the plug-in {point.name!r} of {package_of(point)} ({point.group}) {what} and is left out"
    warnings.warn(escaped(text), PluginWarning, stacklevel=3)
