"""The network: one session for whatever is asked of a server, and how long anybody is patient with it.

`Policy` says how patient, `Credentials` who may see which login, `Session` asks. Redirects are followed by
hand, so that none leads to where bytes come unprotected, to another scheme, in a circle, or carries
credentials to another host. TLS certificates are always verified. An answer is bounded in bytes and time:
http.client waits as long for each byte, reads interim answers and trailers without end, and takes only some
framings apart. So heads are read against a clock and a number of bytes here, and bodies by their framing: a
length, chunks, or the end of the connection. A body that nearly stalls is given up.

`Failures` says whether to try again. urllib3's ``Retry`` does not carry its rules: a transfer goes on in the
middle of a body, any new byte starts the count again, and what servers ask to wait is bounded in all.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import http.client
import io
import ipaddress
import locale
import math
import netrc
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from ckptkit._version import __version__
from ckptkit.base.errors import MissingDependencyError, UsageError
from ckptkit.base.files import open_named
from ckptkit.base.home import user_path
from ckptkit.base.urls import without_secrets

if TYPE_CHECKING:
    import requests
    from requests.cookies import RequestsCookieJar

USER_AGENT = f"ckptkit/{__version__}"
PIECE = 1 << 19
"""Bytes asked for at a time; what has arrived is handed over at once, however little it is."""


# -- what may go wrong ---------------------------------------------------------------------------------------


class SourceError(Exception):
    """A source will not give the file; another may."""

    url = ""
    """Of which of several files it is said, where it is not the main one."""


class BusyError(SourceError):
    """A source did not give the file this time; it may do so later."""


class SourceGoneError(SourceError):
    """The source gave a final answer: no such file (404, 410), or no access (401, 403)."""


class MissingFileError(SourceError):
    """No such file on this machine; its disk may not be mounted."""


class RefusedError(SourceError):
    """401 or 403 to more than the plain request for the file, which says nothing of the file itself."""

    def __init__(self, reason: str, login: str = "") -> None:
        super().__init__(reason)
        self.login = login


class PassingError(Exception):
    """A fault that may pass: connection lost, 5xx, too many requests."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class FramingError(PassingError):
    """An answer that breaks HTTP: something on the way may have done it once, but waiting does not help."""


class SlowError(PassingError):
    """A response that nearly stalls: waiting for it again and again does not help."""


class RangeError(Exception):
    """The rest of a file was asked for and the answer does not fit: begin again from the first byte."""


class StoppedError(Exception):
    """Somebody asked the download to stop."""


# -- how much and how long -----------------------------------------------------------------------------------

_SMALLEST_PIECE, _LARGEST_PIECE = 1 << 10, 1 << 18


class Throttle:
    """A bucket that fills at the given rate and holds a quarter of a second's bytes; safe for many threads.

    >>> waited: list[float] = []
    >>> throttle = Throttle(1000, clock=lambda: 0.0, sleep=waited.append)
    >>> throttle.take(250), throttle.take(500)  # what the bucket holds, then half a second's bytes
    (None, None)
    >>> waited
    [0.5]
    """

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not rate > 0:
            raise UsageError(f"invalid rate of {rate} bytes a second", hint="use more than 0")
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._holds = rate / 4
        self._level = self._holds
        self._filled_at = clock()
        self._lock = threading.Lock()

    @property
    def piece(self) -> int:
        """Bytes to ask for at a time, so that no wait is long."""
        return int(min(max(self.rate / 8, _SMALLEST_PIECE), _LARGEST_PIECE))

    def take(self, count: int) -> None:
        """Account for bytes that came, and wait as long as they are too many."""
        with self._lock:  # the level may fall below zero: who comes later waits behind who came before
            now = self._clock()
            self._level = min(self._holds, self._level + max(now - self._filled_at, 0.0) * self.rate)
            self._filled_at = now
            self._level -= count
            wait = -self._level / self.rate
        if wait > 0:
            self._sleep(wait)


# -- who may see which login ---------------------------------------------------------------------------------

TOKEN_HOSTS: Mapping[str, str] = {
    "github.com": "GITHUB_TOKEN",
    "api.github.com": "GITHUB_TOKEN",
    "huggingface.co": "HF_TOKEN",
}
"""Host → environment variable. Not its subdomains: others' files are served from some of them."""
_HUB_TOKEN, _HUB_SILENT = "HF_TOKEN", "HF_HUB_DISABLE_IMPLICIT_TOKEN"
_YES = ("1", "TRUE", "YES", "ON")
_MOST_NETRC, _MOST_TOKEN = 1 << 20, 8192
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True)
class Credentials:
    """What may be sent to whom.

    >>> credentials = Credentials({"HF_TOKEN": "hf_abc", "NETRC": "/dev/null"})
    >>> credentials.authorization("https://huggingface.co/a/b/resolve/main/m.safetensors")
    'Bearer hf_abc'
    >>> credentials.authorization("https://cdn.huggingface.co/a") is None
    True
    >>> credentials.authorization("http://huggingface.co/a") is None
    True
    """

    # Where tokens and ``NETRC`` are looked up
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    # Host → name of the variable with its token
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
        if variable == _HUB_TOKEN and self.environment.get(_HUB_SILENT, "").strip().upper() in _YES:
            token = variable = ""
        if _TOKEN.fullmatch(token):
            return f"Bearer {token}", f"the token in {variable}"
        if variable == _HUB_TOKEN and not token and (token := self._hub_token):
            return f"Bearer {token}", f"the token in {self._hub_token_file}"
        login = self._logins.get(host)
        return (_basic(*login), f"the login in {self._netrc}") if login else None

    @property
    def _hub_token_file(self) -> str:
        """Where ``hf auth login`` keeps its token, as huggingface_hub documents it."""
        cache = self.environment.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
        home = self.environment.get("HF_HOME", "").strip() or f"{cache}/huggingface"
        return self.environment.get("HF_TOKEN_PATH", "").strip() or f"{home}/token"

    @functools.cached_property
    def _hub_token(self) -> str:
        try:
            with open_named(user_path(os.path.expandvars(self._hub_token_file))) as file:
                token = file.read(_MOST_TOKEN).decode("ascii").strip()
        except (OSError, ValueError, UsageError):  # none there, or no home folder
            return ""
        return token if _TOKEN.fullmatch(token) else ""

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


# -- patience ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """How patient a download is, and how much it takes. Times in seconds; tests inject clock and chance."""

    connect_timeout: float = 15.0  # how long to wait for a connection, and for the next bytes
    read_timeout: float = 60.0
    # How many failures in a row, with no new byte between them, are borne before a source is given up; also
    # how often a file is begun again from the first byte because a part did not fit
    retries: int = 4
    max_attempts: int = 100  # how many requests are made to one source in all
    # The first wait, doubled each time, and its bound. The wait is shortened by chance by up to a half, so
    # that many clients do not come back together
    backoff: float = 1.0
    max_backoff: float = 60.0
    # How long waits that a server asks for (``Retry-After``) may take in all; it is given up for more
    max_retry_after: float = 300.0
    # How long a server may take to send the head of an answer, redirects and all twice as long
    head_seconds: float = 30.0
    # A body that comes with fewer than ``slowest`` bytes a second over this time is given up, too
    slow_seconds: float = 60.0
    slowest: int = 1000
    slow_retries: int = 1  # how often an answer that was given up for being slow is asked for again
    # The largest file that is taken where neither the server nor the registry says how large it is
    most_unknown: int = 2 << 30
    max_redirects: int = 10  # how many redirects in a row are followed
    sleep: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = random.random
    clock: Callable[[], float] = time.time
    connections: int = 1  # how many ranges of one large file are asked for at once
    # Bytes from which a file is worth that, and bytes a range has: seconds on a slow line, and few requests
    # on a quick one
    split_from: int = 64_000_000
    segment: int = 8 << 20
    throttle: Throttle | None = None  # bounds the bandwidth of all downloads that share it
    credentials: Credentials = field(default_factory=Credentials)  # what may be sent to which host
    # Asked again and again whether to stop; what has arrived then stays for a later run
    stopped: Callable[[], bool] = lambda: False

    def wait(self, failures: int) -> float:
        """Seconds to wait after the given number of failures in a row (1 or more)."""
        longest: float = min(self.backoff * 2 ** min(failures - 1, 32), self.max_backoff)
        return longest * (1 - self.chance() / 2)

    def account(self, count: int) -> None:
        """Say that bytes came: waits where they come too quickly, and ends a download that is to stop."""
        if self.throttle is not None:
            self.throttle.take(count)
        if self.stopped():
            raise StoppedError("stopped")


class Failures:
    """What went wrong with one source so far, and whether it is worth another try."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._in_a_row = 0
        self._slow = 0
        self._waited = 0.0

    def wait_for(self, error: Exception, *, progress: bool) -> float:
        """Seconds to wait before the next try; ``progress`` says whether this one brought anything."""
        self._in_a_row = 1 if progress else self._in_a_row + 1
        self._slow += isinstance(error, SlowError)
        if self._in_a_row > self._policy.retries or self._slow > self._policy.slow_retries:
            lasting = isinstance(error, (FramingError, RangeError))
            kind = SourceError if lasting else BusyError
            raise kind(f"{error} ({max(self._in_a_row, self._slow)} times)") from error
        asked = error.retry_after if isinstance(error, PassingError) else None
        if asked is None:
            return self._policy.wait(self._in_a_row)
        self._waited += asked
        if self._waited > self._policy.max_retry_after:
            raise BusyError(f"{error}: the server asks to wait {self._waited:.0f} s in total") from error
        return asked


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds a ``Retry-After`` header asks for, given as a number or as a date; None when it says nothing.

    >>> retry_after("7", 0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 10), retry_after("soon", 0)
    (7.0, 50.0, None)
    """
    text = (value or "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# -- one request ---------------------------------------------------------------------------------------------

_GONE = (404, 410)
REFUSED = (401, 403)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LASTING = (501, 505, 511)
_REDIRECTS = (301, 302, 303, 307, 308)
_ASCII = "".join(map(chr, range(0x21, 0x7F)))


@dataclass(frozen=True)
class Answer:
    """An answer whose body has not been read yet."""

    raw: requests.Response
    redirects: tuple[list[tuple[str, str]], ...] = ()  # the header lines of each that led here

    @property
    def url(self) -> str:
        """Where it came from in the end."""
        return str(self.raw.url)

    @property
    def status(self) -> int:
        """The status code."""
        return self.raw.status_code

    @property
    def status_line(self) -> str:
        """Status code and what it means."""
        meaning = http.client.responses.get(self.status, self.raw.reason or "")
        return f"{self.status} {meaning}".strip()

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by name in any case; repeated ones are joined."""
        return self.raw.headers

    @property
    def header_lines(self) -> list[tuple[str, str]]:
        """Every header line: requests joins repeated ones, urllib3 keeps them apart."""
        lines = getattr(self.raw.raw, "headers", None) or self.raw.headers
        return [(str(name), str(value)) for name, value in lines.items()]

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks; no other framing is known."""
        value = self.headers.get("Transfer-Encoding")
        framing = (value or "").strip(" \t").lower()
        if value is not None and framing not in ("chunked", "identity", ""):
            raise SourceError(f"the server sends the file framed as {framing!r}, which is not understood")
        return framing == "chunked"

    @property
    def length(self) -> int | None:
        """Bytes of the body, as ``Content-Length`` says."""
        value = self.headers.get("Content-Length")
        return int(value) if value is not None and re.fullmatch(r"\d{1,18}", value.strip()) else None

    def pieces(self, step: int = PIECE) -> Iterator[bytes]:
        """Yield the body as it arrives, not decoded, so that a fault loses nothing of it."""
        stream = getattr(getattr(self.raw.raw, "_original_response", None), "fp", None)
        if stream is None:
            return  # an answer that cannot have a body
        try:
            yield from _body(stream, None if self.is_chunked else self.length, self.is_chunked, step)
        except LimitError as error:
            raise error.error from error
        except TimeoutError as error:
            raise PassingError("the connection stalled") from error
        except (http.client.HTTPException, ValueError, OSError) as error:
            raise PassingError(f"connection lost: {_brief(error)}") from error


class Session:
    """Keeps connections between requests, and remembers which logins were refused."""

    def __init__(self, policy: Policy, notes: Callable[[str], None] = lambda _note: None) -> None:
        import requests

        self.policy = policy
        self._notes = notes  # hears of credentials that a server refused
        self._refused: dict[str, str] = {}
        self._session = requests.Session()
        self._session.headers.clear()
        for prefix in ("http://", "https://"):
            self._session.mount(prefix, _bounded_adapter(policy))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Generator[Answer]:
        """GET a URL, with its host's credentials and after its redirects; the status may be any."""
        import requests

        redirects: list[list[tuple[str, str]]] = []
        cookies: dict[str, RequestsCookieJar] = {}  # of each host that this way led through, to it alone
        ends = time.monotonic() + 2 * self.policy.head_seconds
        with contextlib.ExitStack() as stack:
            for _ in range(self.policy.max_redirects + 1):
                if time.monotonic() > ends:
                    raise SlowError(f"redirects for more than {2 * self.policy.head_seconds:g} s")
                kept = cookies.setdefault(_host(url), requests.cookies.RequestsCookieJar())
                answer = self._authorized(url, headers, kept)
                kept.update(answer.raw.cookies)
                stack.callback(answer.raw.close)
                if answer.status not in _REDIRECTS:
                    yield replace(answer, redirects=tuple(redirects))
                    return
                location = answer.headers.get("Location")
                if not location:
                    raise SourceError(f"answered {answer.status} without a location to redirect to")
                redirects.append(answer.header_lines)
                url = checked_redirect(url, _as_sent(location))
        raise SourceError(f"redirect loop (more than {self.policy.max_redirects})")

    def refuse_status(self, answer: Answer, url: str, *, plain: bool) -> None:
        """Raise what a status means that brings no file.

        ``plain`` says that the answer is to a request that anybody could make: no range, no redirect.
        """
        status = answer.status_line
        if answer.status in (200, 206):
            return
        if answer.status in REFUSED and "Retry-After" not in answer.headers:
            if where := self._refused.get(_host(answer.url)):
                raise RefusedError(f"{status}: {where} was refused, and so was the request without it", where)
            if plain and not (urlsplit(url).scheme.lower() == "http" and self._proxies(url)):
                raise SourceGoneError(status)
            raise RefusedError(status)
        if answer.status in _GONE:
            raise SourceGoneError(status)
        if answer.status == 416:
            raise RangeError("the range asked for is not there")
        if answer.status in (*_PASSING, *REFUSED):
            wait = retry_after(answer.headers.get("Retry-After"), self.policy.clock())
            if wait is not None and wait > self.policy.max_retry_after:
                raise BusyError(f"{status}: the server asks to come back in {wait:.0f} s")
            raise PassingError(status, wait)
        raise (SourceError if answer.status < 500 or answer.status in _LASTING else BusyError)(status)

    def _authorized(self, url: str, headers: Mapping[str, str], cookies: RequestsCookieJar) -> Answer:
        """Ask with the host's credentials, and once without where it refuses them."""
        host = _host(url)
        found = None if host in self._refused else self.policy.credentials.found(url)
        answer = self.send(url, headers, found[0] if found else None, cookies)
        if found is None or answer.status not in REFUSED:
            return answer
        answer.raw.close()
        if host not in self._refused:
            self._refused[host] = found[1]
            self._notes(f"{answer.status_line} from {host}: {found[1]} was refused; trying without it")
        return self.send(url, headers, None, cookies)

    def send(
        self,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None = None,
        cookies: RequestsCookieJar | None = None,
    ) -> Answer:
        """Make one request; the caller closes the answer's ``raw``, whatever its status."""
        import requests
        import urllib3

        timeout = (self.policy.connect_timeout, self.policy.read_timeout)
        # No proxy reaches this machine's loopback, but requests would ask one unless NO_PROXY forbids it. An
        # empty mapping, not None: only into a mapping does requests put the environment's proxies.
        direct: Any = {"http": None, "https": None, "all": None} if is_loopback(url) else {}
        certificates = ca_bundle() if urlsplit(url).scheme.lower() == "https" else None
        through = self._through(url)
        asked = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        try:
            # Through the adapter: the session itself reads a redirect's body whole, however large.
            request = self._session.prepare_request(
                requests.Request(
                    "GET",
                    _without_login(url),
                    headers=asked,
                    auth=_Authorization(authorization),
                    cookies=cookies,
                )
            )
            settings = self._session.merge_environment_settings(url, direct, True, None, None)
            answer = self._session.get_adapter(url).send(
                request,
                stream=True,
                timeout=timeout,
                verify=str(certificates[1]) if certificates else True,
                cert=settings["cert"],
                proxies=settings["proxies"],
            )
        except (OSError, ValueError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            raise (_limit_in(error) or _meaning(error, through, certificates)) from error
        return Answer(answer)

    def _proxies(self, url: str) -> Mapping[str, str]:
        """The environment's proxies for a URL."""
        import requests

        return {} if is_loopback(url) else requests.utils.get_environ_proxies(url)

    def _through(self, url: str) -> str:
        """The proxy for a URL and the variable that names it, for messages; empty where there is none."""
        import requests

        proxy = requests.utils.select_proxy(url, self._proxies(url))
        if not proxy:
            return ""
        scheme = urlsplit(url).scheme
        names = [name for kind in (scheme, "all") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())]
        name = next((name for name in names if os.environ.get(name) == proxy), "the system's settings")
        shown = without_secrets(proxy if "://" in proxy else f"http://{proxy}")
        return f"the proxy {shown} of {name}"


def _meaning(error: Exception, through: str, certificates: tuple[str, Path] | None) -> Exception:
    """What an error of requests means for the source."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        known = f"the certificates of {certificates[0]}" if certificates else "certifi's certificates"
        return SourceError(f"the TLS connection is not trusted by {known}: {_brief(error)}")
    if isinstance(error, requests.exceptions.Timeout):
        return PassingError("timed out")
    if isinstance(error, ValueError):  # InvalidURL, InvalidSchema, UnicodeError and a bare one of urllib
        if through and "socks support" in str(error).lower():
            return MissingDependencyError(through, "pysocks")
        if through:
            reason = re.sub(r"(?<!\S)\S*@", "", _brief(error))  # it may repeat the proxy's login
            return SourceError(f"{through} cannot be used: {reason}")
        return SourceError(f"not a URL that can be fetched: {_brief(error)}")
    where = f" through {through}" if through else ""
    inner = _innermost(error)
    broken = isinstance(inner, http.client.HTTPException) and not isinstance(
        inner, (http.client.IncompleteRead, http.client.RemoteDisconnected)
    )
    kind = FramingError if broken else PassingError
    return kind(f"connection failed{where}: {_brief(error)}")


CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that name trusted certificates; the first that is set counts, instead of certifi's."""


def ca_bundle() -> tuple[str, Path] | None:
    """Return the variable that names the certificates to trust, and where they are; None where none does."""
    name = next((name for name in CA_VARIABLES if os.environ.get(name, "").strip()), None)
    if name is None:
        return None
    given = os.environ[name].strip()
    paths = given.split(os.pathsep) if name == "SSL_CERT_DIR" else [given]  # OpenSSL takes several
    path = next((path for path in map(user_path, filter(None, paths)) if path.exists()), None)
    if path is None:
        raise UsageError(
            f"{name} names {given}, which does not exist",
            hint=f"set {name} to a file of certificates, or unset it",
        )
    return name, path


def checked_redirect(origin: str, location: str) -> str:
    """Where a redirect leads, if it is safe to follow.

    Allowed: to https from anywhere, and to http on this machine from http on this machine. Never to http
    elsewhere (the bytes would come unprotected, and http URLs are published only as they stand), never to
    another scheme, never with a user name in it.

    >>> checked_redirect("https://a.org/x/y", "../z")
    'https://a.org/z'
    """
    try:
        target = urljoin(origin, location)
        parts, scheme = urlsplit(target), urlsplit(origin).scheme.lower()
        unusual = urlsplit(location).username is not None or not parts.hostname
    except ValueError as error:
        raise SourceError("redirects to something that is not a URL") from error
    shown = without_secrets(target)
    if parts.scheme.lower() not in ("http", "https") or unusual:
        raise SourceError(f"redirects to {shown}, which is not followed")
    if parts.scheme.lower() != "https" and not (
        scheme == "http" and is_loopback(origin) and is_loopback(target)
    ):
        raise SourceError(f"redirects from {scheme} to http ({shown}), which is not followed")
    return target


class _Authorization:
    """Puts our header into a request; given as ``auth`` so that requests looks for no password itself."""

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value:
            request.headers["Authorization"] = self._value
        return request


def _host(url: str) -> str:
    """Host and port, without a login."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def _as_sent(location: str) -> str:
    """A ``Location`` as the server meant it: what it did not percent-encode is, byte for byte.

    http.client reads headers as latin-1; a host that is UTF-8 stays text, for it has an encoding of its own.

    >>> _as_sent("/mod\u00c3\u00a8les/a b.pth"), _as_sent("/mod\u00e8les")
    ('/mod%C3%A8les/a%20b.pth', '/mod%E8les')
    """
    raw = re.sub(rb"%(?![0-9A-Fa-f]{2})", b"%25", location.encode("latin-1", "replace"))
    with contextlib.suppress(UnicodeDecodeError, ValueError):
        parts = urlsplit(raw.decode())
        return urlunsplit((parts.scheme, parts.netloc, *(quote(part, _ASCII) for part in parts[2:])))
    return quote(raw, _ASCII)


def _without_login(url: str) -> str:
    """URL without user name and password: they are in the header, where no error repeats them."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _innermost(error: BaseException) -> BaseException:
    for _ in range(8):
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def _brief(error: BaseException) -> str:
    """The innermost reason of requests' nested errors, on one line."""
    seen = _innermost(error)
    text = " ".join(str(getattr(seen, "strerror", None) or seen).split())
    return text.rpartition(">: ")[2][:200] or type(seen).__name__


# -- answers as they come over the wire ----------------------------------------------------------------------

_MOST_INTERIM = 8
_MOST_HEAD = 256 << 10
_MOST_TRAILERS = 32 << 10
_LONGEST_CHUNK_LINE = 4096
_FRAMING = 1 << 20
_FRAMING_RATIO = 64
"""Bytes of the file for each of framing, beyond the first `_FRAMING`: chunks of a few hundred bytes."""
_ENOUGH = 1 << 16
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_HIDDEN = re.compile(
    r"^[ \t]*(?:transfer-encoding|content-(?:length|encoding|range)|location)\b", re.IGNORECASE | re.MULTILINE
)


class LimitError(OSError):
    """A server did something without end, or something that cannot be understood."""

    def __init__(self, error: SourceError | PassingError) -> None:
        super().__init__(str(error))
        self.error = error


def _limit_in(error: BaseException) -> SourceError | PassingError | None:
    """The `LimitError` that libraries have wrapped in errors of their own, as what it means."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, LimitError):
            return one.error
        if id(one) not in seen:
            seen.add(id(one))
            inner = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
            waiting += [other for other in inner if isinstance(other, BaseException)]
    return None


def _bounded_adapter(policy: Policy) -> Any:
    """Make an adapter whose connections, direct ones and through proxies, read answers as `_Answer`."""
    from requests.adapters import HTTPAdapter

    answers = functools.partial(_Answer, policy)

    class BoundedAdapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, **options)
            _bound(self.poolmanager, answers)

        def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
            known = proxy in self.proxy_manager
            manager = super().proxy_manager_for(proxy, **options)
            if not known:
                _bound(manager, answers)
            return manager

    return BoundedAdapter()


def _bound(manager: Any, answers: Any) -> None:
    """Have the pools of a manager make connections that read answers by a class of ours."""
    pools = {}
    for scheme, pool in manager.pool_classes_by_scheme.items():
        connection = type(pool.ConnectionCls.__name__, (pool.ConnectionCls,), {"response_class": answers})
        pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": connection})
    manager.pool_classes_by_scheme = pools


class _Answer(http.client.HTTPResponse):
    """An answer whose head has a deadline and a size, and whose body must keep coming."""

    def __init__(self, policy: Policy, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._interim = 0
        self._watched = _Watched(self.fp.detach(), sock, policy)
        self.fp = io.BufferedReader(self._watched)

    def begin(self) -> None:
        if self.headers is not None:
            return
        super().begin()
        framing = self.headers.get_all("Transfer-Encoding", [])
        if framing and self.version == 10:
            raise LimitError(SourceError("the server frames an HTTP/1.0 answer, which has no framing"))
        if any("\n" in value for value in framing):
            raise LimitError(SourceError("the server frames the file in a header of several lines"))
        rest = self.msg.get_payload() if self.msg.defects else ""
        if isinstance(rest, str) and _HIDDEN.search(rest):
            raise LimitError(SourceError("the server sends headers that cannot be understood"))
        self._watched.head_is_over()

    def _read_status(self) -> tuple[str, int, str]:
        """Read the status line of the final answer, after those of interim ones."""
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200 or status == 101:
                return version, status, reason
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                raise LimitError(SourceError(f"the server sends more than {_MOST_INTERIM} interim answers"))
            while self.fp.readline(_MOST_HEAD) not in (b"\r\n", b"\n", b""):
                pass


class _Watched(io.RawIOBase):
    """Bytes from a socket: those of a head by a deadline, those of a body at some rate."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, policy: Policy) -> None:
        self._raw = raw
        self._sock = sock
        self._patience = sock.gettimeout()
        self._policy = policy
        self._ends: float | None = time.monotonic() + policy.head_seconds
        self._count = 0
        self._waited = 0.0

    def readable(self) -> bool:
        return True

    def head_is_over(self) -> None:
        """From now on it is the body."""
        self._ends, self._count, self._waited = None, 0, 0.0

    def readinto(self, buffer: Any, /) -> int:
        count = self._receive(buffer)
        self._count += count
        if self._ends is not None and self._count > _MOST_HEAD:
            raise LimitError(SourceError(f"the server sends more than {_MOST_HEAD:,} bytes of headers"))
        return count

    def _receive(self, buffer: Any) -> int:
        """Wait for bytes as long as the read timeout, the head's deadline and the rate allow."""
        began = time.monotonic()
        stalls_at = math.inf if self._patience is None else began + self._patience
        while True:
            most = self._left(began)
            bounded = began + most < stalls_at
            self._sock.settimeout(max(most if bounded else stalls_at - began, 0.001))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                if not bounded:
                    raise
            finally:
                now = time.monotonic()
                self._waited, began = self._waited + now - began, now

    def _left(self, now: float) -> float:
        """Seconds until the head must be here, or until the rate of the body is looked at again."""
        if self._ends is not None:
            left = self._ends - now
            if left <= 0:
                raise self._too_slow()
            return left
        if self._waited >= self._policy.slow_seconds:
            if self._count < self._policy.slowest * self._waited:
                raise self._too_slow()
            self._count, self._waited = 0, 0.0
        return self._policy.slow_seconds - self._waited

    def _too_slow(self) -> LimitError:
        policy = self._policy
        if self._ends is not None:
            return LimitError(SlowError(f"no complete answer within {policy.head_seconds:g} s"))
        return LimitError(
            SlowError(
                f"{self._count:,} bytes in {policy.slow_seconds:g} s, less than {policy.slowest:,} a second"
            )
        )

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def _body(stream: io.BufferedReader, length: int | None, chunked: bool, step: int) -> Iterator[bytes]:
    """Yield the body that follows the head, past urllib3, which copies each piece twice."""
    if chunked:
        yield from _together(_chunks(stream, step), min(step, _ENOUGH))
        return
    left = math.inf if length is None else length
    while left > 0 and (piece := stream.read1(int(min(step, left)))):
        left -= len(piece)  # whoever counts says that it ended early
        yield piece


def _chunks(stream: io.BufferedReader, step: int) -> Iterator[bytes]:
    """Yield what is in chunks, as it comes."""
    received = framing = 0
    while left := _chunk_size(line := stream.readline(_LONGEST_CHUNK_LINE)):
        received += left
        framing += len(line) + 2
        if framing > _FRAMING + received // _FRAMING_RATIO:
            raise LimitError(SourceError("the server sends chunks of a few bytes each"))
        while left:
            piece = stream.read1(min(left, step))
            if not piece:
                raise _broken()
            left -= len(piece)
            yield piece
        if (end := stream.readline(2)) not in (b"\r\n", b"\n"):
            raise _broken() if not end else _misframed()
    _skip_trailers(stream)


def _together(pieces: Iterator[bytes], enough: int) -> Iterator[bytes]:
    """Yield small pieces together; what came before a fault is not lost."""
    waiting = bytearray()
    try:
        for piece in pieces:
            if not waiting and len(piece) >= enough:
                yield piece
                continue
            waiting += piece
            if len(waiting) >= enough:
                yield bytes(waiting)
                waiting.clear()
    except OSError:
        if waiting:
            yield bytes(waiting)
        raise
    if waiting:
        yield bytes(waiting)


def _chunk_size(line: bytes) -> int:
    found = _CHUNK_LINE.fullmatch(line)
    if found is None:
        raise _broken() if not line.endswith(b"\n") and len(line) < _LONGEST_CHUNK_LINE else _misframed()
    return int(found[1], 16)


def _skip_trailers(stream: io.BufferedReader) -> None:
    left = _MOST_TRAILERS
    while (line := stream.readline(left)) not in (b"\r\n", b"\n"):
        left -= len(line)
        if not line:
            raise _broken()
        if left <= 0:
            raise LimitError(SourceError(f"the server sends more than {_MOST_TRAILERS:,} bytes of trailers"))


def _broken() -> LimitError:
    return LimitError(PassingError("connection lost: the body ended early"))


def _misframed() -> LimitError:
    return LimitError(FramingError("the server sends chunks that are not framed as HTTP says"))
