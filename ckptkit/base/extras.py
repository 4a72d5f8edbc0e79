"""The packages ckptkit works with and the versions it supports, as its own metadata says."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass

import packaging.requirements
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from ckptkit._version import DISTRIBUTION
from ckptkit.base.errors import MissingDependencyError

NOT_FOR_USERS = frozenset({"all", "dev"})
"""Extras that only gather others, or are for ckptkit's own developers."""

_MODULES = {"pillow": "PIL", "backports-zstd": "backports.zstd", "pyyaml": "yaml"}
"""Modules that have another name than their distribution, with - for _ and dots."""

_EXTRA = re.compile(r"extra == \"([^\"]+)\"")


@dataclass(frozen=True)
class Requirement:
    """One package, and the extra that brings it."""

    name: str
    supported: str  # versions, such as >=1,<2; empty for any
    extra: str = ""  # empty for what ckptkit always needs

    @property
    def module(self) -> str:
        """The name of its module."""
        return _MODULES.get(canonicalize_name(self.name), self.name.lower().replace("-", "_"))

    @property
    def install_word(self) -> str:
        """What ``pip install`` is given, quoted for a shell."""
        return f"'{self.name}{self.supported}'" if self.supported else self.name

    @property
    def installed(self) -> str | None:
        """Its version here; None where it is not installed."""
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def supports(self, version: str) -> bool:
        """Whether a version is one of those supported.

        Examples
        --------
        >>> torch = Requirement("torch", "<2.14,>=2.6")
        >>> torch.supports("2.13.0+cpu"), torch.supports("2.14"), torch.supports("1.13.1")
        (True, False, False)
        """
        try:
            return SpecifierSet(self.supported).contains(version, prereleases=True)
        except InvalidVersion:
            return False


def requirements() -> list[Requirement]:
    """Everything ckptkit needs or can use on this Python, without the extras in `NOT_FOR_USERS`.

    Raises `importlib.metadata.PackageNotFoundError` where ckptkit runs without having been installed.
    """
    found = [_parse(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    return [one for one in found if one is not None and one.extra not in NOT_FOR_USERS]


def _parse(text: str) -> Requirement | None:
    """Read one line of the metadata; None where it is not for this Python."""
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
    """Return the command that installs packages in the versions that are supported.

    Examples
    --------
    >>> install_command("matplotlib", "gcsfs")
    "pip install 'matplotlib>=3.8,<4' gcsfs"
    """
    try:
        ranges = {canonicalize_name(one.name): one.supported for one in requirements()}
    except importlib.metadata.PackageNotFoundError:
        ranges = {}
    words = [Requirement(name, ranges.get(canonicalize_name(name), "")).install_word for name in packages]
    return f"pip install {' '.join(words)}"


def require_installed(needed: Sequence[str], purpose: str) -> None:
    """Refuse a work for which packages are missing, naming all of them; none is imported.

    Examples
    --------
    >>> require_installed(["numpy"], "counting")
    """
    missing = [package for package in needed if not is_installed(package)]
    if missing:
        raise MissingDependencyError(purpose, *missing)


def is_installed(package: str) -> bool:
    """Whether a distribution's module would be found."""
    try:
        return importlib.util.find_spec(Requirement(package, "").module) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or by None in sys.modules
        return False
