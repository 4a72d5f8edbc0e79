"""The environment variables that change what ckptkit does. Secrets are named, never shown."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from ckptkit.base.errors import CkptkitError
from ckptkit.base.extras import install_command
from ckptkit.base.net import CA_VARIABLES, TOKEN_HOSTS
from ckptkit.base.urls import without_secrets
from ckptkit.doctor.findings import Finding
from ckptkit.store.sources import ENVIRONMENT as MIRROR
from ckptkit.store.sources import parse_mirrors

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_OURS = ("CKPTKIT_HOME", "CKPTKIT_REGISTRY", "CKPTKIT_TRUST")
_PLAIN = (
    *_OURS,
    *("NO_PROXY", "NETRC", "KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NO_COLOR"),
)


def examine_settings(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Tell which variables are set; of proxies without user name and password, of tokens only that they are.

    Parameters
    ----------
    environment : Mapping of str to str, optional
        ``os.environ`` where not given.
    """
    given = os.environ if environment is None else environment
    findings = [Finding("environment", name, "ok", given[name]) for name in _PLAIN if given.get(name)]
    findings += [_mirror(given[MIRROR])] if given.get(MIRROR, "").strip() else []
    for upper in _PROXIES:
        for name in (upper, upper.lower()):
            if given.get(name):
                findings.append(_proxy(name, given[name]))
    certificates = [name for name in CA_VARIABLES if given.get(name, "").strip()]
    findings += [_certificates(name, given[name], certificates[0]) for name in certificates]
    tokens = sorted(set(TOKEN_HOSTS.values()))
    findings += [_token(name, given[name]) for name in tokens if given.get(name)]
    findings += [_unknown(name) for name in sorted(given) if _is_unknown(name)]
    return findings or [Finding("environment", "variables", "ok", "none is set that matters")]


def masked(address: str) -> str:
    """A proxy's address without what would let others use it.

    Examples
    --------
    >>> masked("http://me:secret@proxy.example.org:3128"), masked("me:secret@proxy:3128"), masked("a:3128")
    ('http://***@proxy.example.org:3128', '***@proxy:3128', 'a:3128')
    """
    scheme, separator, rest = address.rpartition("://")
    login, at, host = rest.rpartition("@")
    del login
    return f"{scheme}{separator}{'***@' if at else ''}{host}"


def _mirror(rules: str) -> Finding:
    try:
        parsed = parse_mirrors((), rules)
    except CkptkitError as error:
        return Finding("environment", MIRROR, "problem", error.message, error.hint or "")
    said = "; ".join(f"{without_secrets(rule.origin)} from {without_secrets(rule.target)}" for rule in parsed)
    return Finding("environment", MIRROR, "ok", said)


def _proxy(name: str, value: str) -> Finding:
    if value.lower().startswith("socks") and importlib.util.find_spec("socks") is None:
        said = f"{masked(value)}: a SOCKS proxy, which needs a package that is not installed"
        return Finding("environment", name, "problem", said, install_command("pysocks"))
    return Finding("environment", name, "ok", masked(value))


def _certificates(name: str, value: str, first: str) -> Finding:
    if name != first:
        return Finding("environment", name, "ok", f"{value}, not used: {first} comes first")
    if any(path and Path(path).exists() for path in value.strip().split(os.pathsep)):
        return Finding("environment", name, "ok", value)
    said = f"{value} does not exist, so nothing can be fetched over https"
    return Finding("environment", name, "problem", said, f"unset {name}, or set it to a file of certificates")


def _is_unknown(name: str) -> bool:
    """Whether somebody meant one of ckptkit's variables and wrote another."""
    return name.startswith("CKPTKIT_") and name not in (*_OURS, MIRROR)


def _unknown(name: str) -> Finding:
    known = ", ".join((*_OURS, MIRROR))
    return Finding("environment", name, "note", "ckptkit knows no such variable", f"it knows {known}")


def _token(name: str, value: str) -> Finding:
    if value.strip().isascii() and value.strip().isprintable() and " " not in value.strip():
        return Finding("environment", name, "ok", "set")
    return Finding("environment", name, "note", "set, but no token: it is not used", f"set {name} anew")
