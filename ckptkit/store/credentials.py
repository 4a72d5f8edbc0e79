"""Which credentials go with a request: those of the host that is asked, and of no other.

A host's credentials are, first of all found: user name and password in the URL, a token from the environment
(`TOKEN_HOSTS`), the host's own entry in ``.netrc``. The last two go over https only, or to this machine. They
are looked up for each hop of a redirect anew, so that what one host may see never reaches another, and they
appear in no record, message or log.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import ipaddress
import locale
import netrc
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ckptkit.base.files import open_named
from ckptkit.base.home import user_path

TOKEN_HOSTS: Mapping[str, str] = {
    "github.com": "GITHUB_TOKEN",
    "api.github.com": "GITHUB_TOKEN",
    "huggingface.co": "HF_TOKEN",
}
"""Host → environment variable. Not its subdomains: others' files are served from some of them."""

_MOST_NETRC = 1 << 20
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True)
class Credentials:
    """What may be sent to whom.

    Parameters
    ----------
    environment : Mapping of str to str
        Where tokens and ``NETRC`` are looked up.
    token_hosts : Mapping of str to str
        Host → name of the variable with its token.

    Examples
    --------
    >>> credentials = Credentials({"HF_TOKEN": "hf_abc", "NETRC": "/dev/null"})
    >>> credentials.authorization("https://huggingface.co/a/b/resolve/main/m.safetensors")
    'Bearer hf_abc'
    >>> credentials.authorization("https://cdn.huggingface.co/a") is None
    True
    >>> credentials.authorization("http://huggingface.co/a") is None
    True
    """

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    token_hosts: Mapping[str, str] = field(default_factory=lambda: TOKEN_HOSTS)

    def authorization(self, url: str) -> str | None:
        """Value of the ``Authorization`` header for a URL; None where there is none to send."""
        found = self.found(url)
        return found[0] if found else None

    def found(self, url: str) -> tuple[str, str] | None:
        """Value of the ``Authorization`` header for a URL, and in words where it comes from."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if parts.username is not None:
            return _basic(unquote(parts.username), unquote(parts.password or "")), "the login in the URL"
        if parts.scheme.lower() != "https" and not is_loopback(url):
            return None
        variable = self.token_hosts.get(host, "")
        token = self.environment.get(variable, "").strip()
        if _TOKEN.fullmatch(token):
            return f"Bearer {token}", f"the token in {variable}"
        login = self._logins.get(host)
        return (_basic(*login), f"the login in {self._netrc}") if login else None

    @property
    def _netrc(self) -> str:
        return self.environment.get("NETRC", "").strip() or "~/.netrc"

    @functools.cached_property
    def _logins(self) -> Mapping[str, tuple[str, str]]:
        """Host → user name and password, from ``.netrc``; its ``default`` is for every host, so for none."""
        found: dict[str, tuple[str, str]] = {}
        for path in self._netrc_files():
            try:
                with open_named(path) as file:
                    hosts = _Netrc(file.read(_MOST_NETRC + 1)).hosts
            except (OSError, ValueError, netrc.NetrcParseError):
                continue
            for host, (login, account, password) in hosts.items():
                if host != "default" and (login or account or password):
                    found.setdefault(host.lower(), (login or account or "", password or ""))
            break
        return found

    def _netrc_files(self) -> list[Path]:
        given = self.environment.get("NETRC", "").strip()
        if given:
            return [user_path(given)]
        try:
            return [path for name in (".netrc", "_netrc") if (path := Path.home() / name).is_file()]
        except (RuntimeError, OSError):  # no home folder
            return []


class _Netrc(netrc.netrc):
    """A file that was read already: the library would wait for a pipe, and read a device without end."""

    def __init__(self, content: bytes) -> None:
        if len(content) > _MOST_NETRC:
            raise ValueError(f"more than {_MOST_NETRC:,} bytes")
        self.hosts, self.macros = {}, {}
        for encoding in ("utf-8", locale.getpreferredencoding(False)):
            with contextlib.suppress(UnicodeDecodeError):
                text = io.TextIOWrapper(io.BytesIO(content), encoding)
                self._parse("netrc", text, False)  # type: ignore[attr-defined]
                return


def _basic(login: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine.

    Examples
    --------
    >>> is_loopback("http://127.0.0.1:8000/x"), is_loopback("https://127.0.0.1.evil.org/")
    (True, False)
    """
    host = (urlsplit(url).hostname or "").lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
