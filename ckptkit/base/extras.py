"""The packages ckptkit works with and the versions it supports, as its own metadata says.

The metadata lists each as ``name[extras]<2,>=1; marker`` (PEP 508), the extra being part of the marker. Only
the operators and markers that such a list uses are understood here; of anything else nothing is claimed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ckptkit._version import DISTRIBUTION
from ckptkit.base.errors import MissingDependencyError

NOT_FOR_USERS = frozenset({"all", "dev"})
"""Extras that only gather others, or are for ckptkit's own developers."""

MODULES = {
    "pillow": "PIL",
    "backports-zstd": "backports.zstd",
    "pyyaml": "yaml",
}
"""Modules that are not called as their distribution is, with - for _ and dots."""

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_CLAUSE = re.compile(r"\s*(<=|>=|==|!=|~=|<|>)\s*([0-9][^,\s]*)\s*")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_PYTHON = re.compile(r"""python_version\s*(<=|>=|==|!=|<|>)\s*['"]([0-9.]+)['"]""")


@dataclass(frozen=True)
class Requirement:
    """One package.

    Attributes
    ----------
    name : str
    supported : str
        The versions, such as ``>=1,<2``; empty for any.
    extra : str
        The extra that brings it; empty for what ckptkit always needs.
    """

    name: str
    supported: str
    extra: str = ""

    @property
    def module(self) -> str:
        """What its module is called."""
        return MODULES.get(_normal(self.name), self.name.lower().replace("-", "_"))

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
        clauses = [match.groups() for match in map(_CLAUSE.fullmatch, self.supported.split(",")) if match]
        return all(_compares(version, operator, bound) for operator, bound in clauses)


def requirements() -> list[Requirement]:
    """Everything ckptkit needs or can use on this Python, without the extras in `NOT_FOR_USERS`.

    Raises
    ------
    importlib.metadata.PackageNotFoundError
        When ckptkit runs without having been installed, so that there is no metadata.
    """
    found = [_parse(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    return [one for one in found if one is not None and one.extra not in NOT_FOR_USERS]


def install_command(*packages: str) -> str:
    """Return the command that installs packages in the versions that are supported.

    Examples
    --------
    >>> install_command("matplotlib", "gcsfs")
    "pip install 'matplotlib>=3.8,<4' gcsfs"
    """
    try:
        ranges = {_normal(one.name): one.supported for one in requirements()}
    except importlib.metadata.PackageNotFoundError:
        ranges = {}
    words = [Requirement(name, ranges.get(_normal(name), "")).install_word for name in packages]
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


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _parse(text: str) -> Requirement | None:
    """Read one line of the metadata; None where it is not for this Python."""
    match = _REQUIREMENT.fullmatch(text)
    if match is None:
        return None
    name, marker = match[1], match[3] or ""
    bounds = sorted(
        match[2].strip().split(","), key=lambda bound: bound.startswith("<")
    )  # the lower one first
    supported = ",".join(bounds)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if any(not _compares(python, operator, bound) for operator, bound in _PYTHON.findall(marker)):
        return None
    extra = _EXTRA.search(marker)
    return Requirement(name, supported, extra[1] if extra else "")


def _compares(version: str, operator: str, bound: str) -> bool:
    """Whether a version stands so to another; of a pre-release its number alone counts."""
    here, there = _release(version), _release(bound)
    if operator == "~=":
        return here >= there and here[: len(_digits(bound)) - 1] == there[: len(_digits(bound)) - 1]
    return {
        "<": here < there,
        "<=": here <= there,
        "==": here == there,
        "!=": here != there,
        ">": here > there,
        ">=": here >= there,
    }[operator]


def _release(version: str) -> tuple[int, ...]:
    """Numbers of a version, as many that 2.0 and 2.0.0 are the same.

    Examples
    --------
    >>> _release("2.13.0+cpu") == _release("2.13")
    True
    """
    digits = _digits(version)
    return (*digits, *[0] * (6 - len(digits)))


def _digits(version: str) -> Sequence[int]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in match[0].split(".")] if match else [0]
