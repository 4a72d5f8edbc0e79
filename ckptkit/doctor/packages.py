"""Versions: of ckptkit, of Python, and of every package that one of its extras brings.

Nothing is imported: what stands in the metadata of the installed packages is enough, and quick.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from ckptkit._version import DISTRIBUTION, __version__, strangers
from ckptkit.base.extras import Requirement, requirements
from ckptkit.doctor.findings import Finding


def examine_versions() -> list[Finding]:
    """Of ckptkit, Python and the platform."""
    implementation = platform.python_implementation()
    return [
        Finding("versions", "ckptkit", "ok", __version__),
        *_namesakes(),
        Finding(
            "versions", "Python", "ok", f"{platform.python_version()} ({implementation}), {sys.executable}"
        ),
        Finding("versions", "platform", "ok", platform.platform()),
    ]


def _namesakes() -> list[Finding]:
    """Another project's distribution of this name, and other copies of the package that Python could take."""
    found = [
        Finding(
            "versions",
            "ckptkit of others",
            "problem",
            f"{folder}: another project with the same import name and command",
            f"pip uninstall ckptkit; then install {DISTRIBUTION} again, as both have the same files",
        )
        for folder in strangers()
    ]
    taken = Path(__file__).parents[1] / "__init__.py"
    for place in dict.fromkeys(sys.path):
        other = Path(place or os.curdir, "ckptkit", "__init__.py")
        if other.is_file() and not other.samefile(taken):
            said = f"{other.parent}; this one is {taken.parent}"
            advice = "remove one of them, or start Python elsewhere"
            found.append(Finding("versions", "ckptkit twice", "note", said, advice))
    return found


def examine_packages(needed: Iterable[Requirement] | None = None) -> list[Finding]:
    """What ckptkit always needs in one line if all is well, then each package of each extra.

    Parameters
    ----------
    needed : iterable of Requirement, optional
        Those of ckptkit's own metadata where not given.
    """
    try:
        found = requirements() if needed is None else list(needed)
    except importlib.metadata.PackageNotFoundError:
        said = "ckptkit runs without being installed, so which packages it supports is not known"
        return [Finding("packages", "metadata", "note", said, "pip install -e .")]
    base = [one for one in found if not one.extra]
    extras = _by_package(one for one in found if one.extra)
    wrong = [finding for one in base if (finding := _examine(one, "")).verdict != "ok"]
    fine = len(base) - len(wrong)
    return [
        Finding("packages", "always needed", "ok", f"{fine} packages, as supported"),
        *wrong,
        *(_examine(one, ", ".join(names)) for one, names in extras),
    ]


def _by_package(found: Iterable[Requirement]) -> list[tuple[Requirement, list[str]]]:
    """Each package once, with the extras that bring it."""
    packages: dict[str, tuple[Requirement, list[str]]] = {}
    for one in found:
        packages.setdefault(one.name.lower(), (one, []))[1].append(one.extra)
    return list(packages.values())


def _examine(one: Requirement, extras: str) -> Finding:
    """Look for a package. Without an extra it is one that ckptkit cannot do without."""
    version = one.installed
    install = f"pip install {one.install_word}"
    brought = f", extra {extras}" if extras else ""
    if version is None:
        said = f"not installed{brought}"
        return Finding("packages", one.name, "note" if one.extra else "problem", said, install)
    if not one.supports(version):
        said = f"{version}, but {one.supported} is supported{brought}"
        return Finding("packages", one.name, "note", said, install)
    if not _can_be_found(one.module):
        said = f"{version} is recorded, but the package itself is not there{brought}"
        advice = f"pip install --force-reinstall {one.install_word}"
        return Finding("packages", one.name, "note" if one.extra else "problem", said, advice)
    return Finding("packages", one.name, "ok", f"{version}{brought}")


def _can_be_found(module: str) -> bool:
    """Whether an import would find it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or by None in sys.modules
        return False
