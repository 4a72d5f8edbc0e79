"""Versions: of ckptkit, of Python, and of every package that one of its extras brings.

Nothing is imported: what stands in the metadata of the installed packages is enough, and quick.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterable

from ckptkit._version import __version__
from ckptkit.doctor.findings import Finding
from ckptkit.doctor.requirements import Requirement, requirements

_MODULES = {
    "pillow": "PIL",
    "backports-zstd": "backports.zstd",
    "pyyaml": "yaml",
    "huggingface-hub": "huggingface_hub",
}
"""Modules that are not called as their package is."""


def examine_versions() -> list[Finding]:
    """Of ckptkit, Python and the platform."""
    implementation = platform.python_implementation()
    return [
        Finding("versions", "ckptkit", "ok", __version__),
        Finding(
            "versions", "Python", "ok", f"{platform.python_version()} ({implementation}), {sys.executable}"
        ),
        Finding("versions", "platform", "ok", platform.platform()),
    ]


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
        return [Finding("packages", "metadata", "note", said, "pip install ckptkit, or pip install -e .")]
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
    install = f"pip install 'ckptkit[{one.extra}]'" if one.extra else "pip install --upgrade ckptkit"
    brought = f", extra {extras}" if extras else ""
    if version is None:
        said = f"not installed{brought}"
        return Finding("packages", one.name, "note" if one.extra else "problem", said, install)
    if not one.supports(version):
        said = f"{version}, but {one.supported} is supported{brought}"
        return Finding("packages", one.name, "note", said, install)
    if not _can_be_found(one.name):
        said = f"{version} is recorded, but the package itself is not there{brought}"
        advice = f"pip install --force-reinstall {one.name}"
        return Finding("packages", one.name, "note" if one.extra else "problem", said, advice)
    return Finding("packages", one.name, "ok", f"{version}{brought}")


def _can_be_found(name: str) -> bool:
    """Whether an import of the package would find it."""
    module = _MODULES.get(name.lower(), name.lower().replace("-", "_"))
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or by None in sys.modules
        return False
