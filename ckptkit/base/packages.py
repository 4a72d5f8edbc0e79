"""Other packages: those that ckptkit can use, as its own metadata names them, and those that add to it.

A plug-in's package names its objects as entry points in its own ``pyproject.toml``. Who asks here knows the
built-in objects and asks for others only: looking through the installed packages takes longer than a short
command's own work, as does importing what looks there.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ckptkit._version import DISTRIBUTION
from ckptkit.base.text import escaped

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

NOT_FOR_USERS = frozenset({"all", "test", "dev"})
"""Extras that only gather others, or are for ckptkit's own developers."""

_MODULES = {"pillow": "PIL", "backports-zstd": "backports.zstd", "pyyaml": "yaml"}
"""Modules that have another name than their distribution, with - for _ and dots."""

_EXTRA = re.compile(r"extra == \"([^\"]+)\"")


def _canonical(name: str) -> str:
    """A distribution's name as PyPA compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Requirement:
    """One package, and the extra that brings it.

    >>> torch = Requirement("torch", "<2.14,>=2.6")
    >>> torch.supports("2.13.0+cpu"), torch.supports("2.14"), torch.supports("1.13.1")
    (True, False, False)
    """

    name: str
    supported: str  # versions, such as >=1,<2; empty for any
    extra: str = ""  # empty for what ckptkit always needs

    @property
    def module(self) -> str:
        """The name of its module."""
        return _MODULES.get(_canonical(self.name), self.name.lower().replace("-", "_"))

    @property
    def install_word(self) -> str:
        """What ``pip install`` is given, quoted for a shell."""
        return f"'{self.name}{self.supported}'" if self.supported else self.name

    @property
    def installed(self) -> str | None:
        """Its version here; None where it is not installed."""
        import importlib.metadata

        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def supports(self, version: str) -> bool:
        """Whether a version is one of those supported."""
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion

        try:
            return SpecifierSet(self.supported).contains(version, prereleases=True)
        except InvalidVersion:
            return False


def requirements() -> list[Requirement]:
    """Everything ckptkit needs or can use on this Python, without the extras in `NOT_FOR_USERS`.

    Raises `importlib.metadata.PackageNotFoundError` where ckptkit runs without having been installed.
    """
    import importlib.metadata

    found = [_parse(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    return [one for one in found if one is not None and one.extra not in NOT_FOR_USERS]


def _parse(text: str) -> Requirement | None:
    """Read one line of the metadata; None where it is not for this Python."""
    import packaging.requirements

    try:
        line = packaging.requirements.Requirement(text)
    except packaging.requirements.InvalidRequirement:
        return None
    extra = found[1] if (found := _EXTRA.search(str(line.marker))) else ""
    if line.marker is not None and not line.marker.evaluate({"extra": extra}):
        return None
    bounds = sorted(str(line.specifier).split(","), key=lambda bound: bound.startswith("<"))  # lower first
    return Requirement(line.name, ",".join(bounds), extra)


def install_command(*packages: str) -> str:
    """The command that installs packages in the versions that are supported.

    >>> install_command("matplotlib", "gcsfs")
    "pip install 'matplotlib>=3.8' gcsfs"
    """
    import importlib.metadata

    try:
        ranges = {_canonical(one.name): one.supported for one in requirements()}
    except importlib.metadata.PackageNotFoundError:
        ranges = {}
    words = [Requirement(name, ranges.get(_canonical(name), "")).install_word for name in packages]
    return f"pip install {' '.join(words)}"


def is_installed(package: str) -> bool:
    """Whether a distribution's module would be found."""
    try:
        return importlib.util.find_spec(Requirement(package, "").module) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or by None in sys.modules
        return False


# -- plug-ins ------------------------------------------------------------------------------------------------


class PluginWarning(UserWarning):
    """An installed plug-in cannot be used."""


@lru_cache
def plugins(group: str, kind: type = object, taken: Collection[str] = ()) -> dict[str, Any]:
    """The usable plug-ins of a group by name; ``taken`` names are not theirs.

    >>> plugins("ckptkit.no_such_group")
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
    from importlib.metadata import entry_points

    loaded = []
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, package_of(point))):
        try:
            loaded.append((point, point.load()))
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _warn(point, f"cannot be loaded ({reason})")
    return loaded


def forget_plugins() -> None:
    """Look again on the next occasion; for tests."""
    plugins.cache_clear()
    _loaded.cache_clear()


def package_of(point: EntryPoint) -> str:
    """The package that an entry point belongs to, with its version."""
    try:
        assert point.dist is not None
        return f"{point.dist.name} {point.dist.version}"
    except Exception:  # a folder of metadata that is damaged raises KeyError, TypeError or AssertionError
        return f"the package of {point.value}"


def _warn(point: EntryPoint, what: str) -> None:
    text = f"the plug-in {point.name!r} of {package_of(point)} ({point.group}) {what} and is left out"
    warnings.warn(escaped(text), PluginWarning, stacklevel=3)
