"""HTTP(S): one GET, its redirects, and what its headers say.

Redirects are followed by hand, so that none leads to where bytes come unprotected, to another scheme, in a
circle, or carries credentials to another host. TLS certificates are always verified.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from ckptkit._version import __version__
from ckptkit.base.errors import MissingDependencyError, UsageError
from ckptkit.base.home import user_path
from ckptkit.store.credentials import is_loopback
from ckptkit.store.integrity import Promise, redirect_promises, server_promises
from ckptkit.store.transport import (
    KEPT,
    PIECE,
    BusyError,
    FramingError,
    Identity,
    PassingError,
    Policy,
    RangeError,
    RefusedError,
    Response,
    SlowError,
    SourceError,
    SourceGoneError,
    without_secrets,
)

if TYPE_CHECKING:
    import requests
    from requests.cookies import RequestsCookieJar

USER_AGENT = f"ckptkit/{__version__}"
_GONE = (404, 410)
_REFUSED = (401, 403)
_EXPIRED = (400, 401, 403)
"""What storage services answer to a signed address whose time is over: 403 most, 400 and 401 some."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LASTING = (501, 505, 511)
_REDIRECTS = (301, 302, 303, 307, 308)
_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_PACKED = frozenset(
    {"br", "zstd", "deflate", "compress", "x-compress", "bzip2", "xz", "lzma", "pack200-gzip"}
)
_CONTENT_RANGE = re.compile(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class HttpClient:
    """A session: connections are kept between requests, nothing else is.

    Parameters
    ----------
    policy : Policy
        Timeouts and bounds.
    notes : callable
        Told of credentials that a server refused.
    """

    def __init__(self, policy: Policy, notes: Callable[[str], None] = lambda _note: None) -> None:
        import requests

        from ckptkit.store.wire import mount

        self._policy = policy
        self._notes = notes
        self._refused: dict[str, str] = {}
        self._session = requests.Session()
        self._session.headers.clear()
        mount(self._session, policy)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @contextlib.contextmanager
    def open(
        self, url: str, start: int = 0, known: Identity | None = None, stop: int | None = None
    ) -> Generator[Response]:
        """GET a URL, from byte ``start`` on (up to ``stop``) if the file is still the ``known`` one.

        Raises
        ------
        SourceGoneError
            On 404 and 410, and on 401 and 403 to the plain request that anybody could make.
        RefusedError
            On 401 and 403 to any other: for a range, with credentials, behind a redirect or a proxy.
        SourceError
            On a refusal that will not pass: other 4xx, a redirect not to be followed, a bad certificate.
        PassingError
            On a fault that may pass; a signed address that a redirect led to and that is no longer valid, in
            the middle of a file, is one.
        RangeError
            When a range was asked for and the answer does not continue the known file.
        """
        headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1 if stop is not None else ''}"
            if known and known.if_range:
                headers["If-Range"] = known.if_range
        with contextlib.ExitStack() as stack:
            answer, promised, redirected = self._follow(url, headers, stack)
            if start and redirected and answer.status_code in _EXPIRED:
                said = f"{answer.status_code} {http.client.responses[answer.status_code]}"
                raise PassingError(f"the address it redirects to has expired ({said})")
            if answer.status_code in _REFUSED and "Retry-After" not in answer.headers:
                self._refuse(answer, url, plain=not (redirected or "Range" in headers))
            _refuse_status(answer, self._policy)
            yield _response(answer, promised, (start, stop), known, self._policy)

    def _follow(
        self, url: str, headers: dict[str, str], stack: contextlib.ExitStack
    ) -> tuple[requests.Response, tuple[Promise, ...], bool]:
        """Answer, what redirects promised, and whether there were any."""
        import requests

        promised: tuple[Promise, ...] = ()
        cookies: dict[str, RequestsCookieJar] = {}  # of each host that this way led through, to it alone
        ends = time.monotonic() + 2 * self._policy.head_seconds
        for hop in range(self._policy.max_redirects + 1):
            if time.monotonic() > ends:
                raise SlowError(f"redirects for more than {2 * self._policy.head_seconds:g} s")
            kept = cookies.setdefault(_host(url), requests.cookies.RequestsCookieJar())
            answer = self._get(url, headers, kept)
            kept.update(answer.cookies)
            stack.callback(answer.close)
            location = answer.headers.get("Location")
            if answer.status_code not in _REDIRECTS:
                return answer, promised, hop > 0
            if not location:
                raise SourceError(f"answered {answer.status_code} without saying where to go")
            promised += redirect_promises(_header_lines(answer))
            url = checked_redirect(url, _as_sent(location))
        raise SourceError(f"redirects in a circle (more than {self._policy.max_redirects})")

    def _refuse(self, answer: requests.Response, url: str, *, plain: bool) -> NoReturn:
        """Raise what 401 or 403 means."""
        said = _status_line(answer)
        if where := self._refused.get(_host(answer.url)):
            raise RefusedError(f"{said}: {where} was refused, and so was the request without it", where)
        if plain and not (urlsplit(url).scheme.lower() == "http" and self._proxies(url)):
            raise SourceGoneError(said)
        raise RefusedError(said)

    def _get(self, url: str, headers: dict[str, str], cookies: RequestsCookieJar) -> requests.Response:
        """Ask with the host's credentials, and once without where it refuses them."""
        host = _host(url)
        found = None if host in self._refused else self._policy.credentials.found(url)
        answer = self._send(url, headers, cookies, found[0] if found else None)
        if found is None or answer.status_code not in _REFUSED:
            return answer
        answer.close()
        if host not in self._refused:
            self._refused[host] = found[1]
            self._notes(f"{_status_line(answer)} from {host}: {found[1]} was refused; trying without it")
        return self._send(url, headers, cookies, None)

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

    def _send(
        self, url: str, headers: dict[str, str], cookies: RequestsCookieJar, authorization: str | None
    ) -> requests.Response:
        import requests
        import urllib3

        from ckptkit.store.wire import limit_in

        timeout = (self._policy.connect_timeout, self._policy.read_timeout)
        # No proxy reaches this machine's loopback, but requests would ask one unless NO_PROXY forbids it. An
        # empty mapping, not None: only into a mapping does requests put the environment's proxies.
        direct: Any = {"http": None, "https": None, "all": None} if is_loopback(url) else {}
        certificates = ca_bundle() if urlsplit(url).scheme.lower() == "https" else None
        through = self._through(url)
        try:
            # Through the adapter: the session itself reads a redirect's body whole, however large.
            request = self._session.prepare_request(
                requests.Request(
                    "GET",
                    _without_login(url),
                    headers=headers,
                    auth=_Authorization(authorization),
                    cookies=cookies,
                )
            )
            settings = self._session.merge_environment_settings(url, direct, True, None, None)
            return self._session.get_adapter(url).send(
                request,
                stream=True,
                timeout=timeout,
                verify=str(certificates[1]) if certificates else True,
                cert=settings["cert"],
                proxies=settings["proxies"],
            )
        except (OSError, ValueError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            raise (limit_in(error) or self._meaning(error, through, certificates)) from error

    def _meaning(self, error: Exception, through: str, certificates: tuple[str, Path] | None) -> Exception:
        """What an error of requests means for the source."""
        import requests

        if isinstance(error, requests.exceptions.SSLError):
            known = f"the certificates of {certificates[0]}" if certificates else "certifi's certificates"
            return SourceError(f"the TLS connection is not to be trusted by {known}: {_brief(error)}")
        if isinstance(error, requests.exceptions.Timeout):
            return PassingError("no answer in time")
        if isinstance(error, ValueError):  # InvalidURL, InvalidSchema, UnicodeError and a bare one of urllib
            if through and "socks support" in str(error).lower():
                return MissingDependencyError(through, "pysocks")
            if through:
                said = re.sub(r"(?<!\S)\S*@", "", _brief(error))  # it may repeat the proxy's login
                return SourceError(f"{through} cannot be used: {said}")
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
    """Return the variable that names the certificates to trust, and the file or folder; None where none does.

    Raises
    ------
    UsageError
        There is no such file or folder.
    """
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

    Examples
    --------
    >>> _as_sent("/mod\u00c3\u00a8les/a b.pth"), _as_sent("/mod\u00e8les")
    ('/mod%C3%A8les/a%20b.pth', '/mod%E8les')
    """
    raw = re.sub(rb"%(?![0-9A-Fa-f]{2})", b"%25", location.encode("latin-1", "replace"))
    with contextlib.suppress(UnicodeDecodeError, ValueError):
        parts = urlsplit(raw.decode())
        return urlunsplit((parts.scheme, parts.netloc, *(quote(part, _ASCII) for part in parts[2:])))
    return quote(raw, _ASCII)


def _status_line(answer: requests.Response) -> str:
    status = answer.status_code
    return f"{status} {http.client.responses.get(status, answer.reason or '')}".strip()


def _without_login(url: str) -> str:
    """URL without user name and password: they are in the header, where no error repeats them."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def checked_redirect(origin: str, location: str) -> str:
    """Where a redirect leads, if it is safe to follow.

    Allowed: to https from anywhere, and to http on this machine from http on this machine. Never to http
    elsewhere (the bytes would come unprotected, and http URLs are published only as they stand), never to
    another scheme, never with a user name in it.

    Raises
    ------
    SourceError
        When it is not safe, or no URL at all.

    Examples
    --------
    >>> checked_redirect("https://a.org/x/y", "../z")
    'https://a.org/z'
    """
    try:
        target = urljoin(origin, location)
        parts, scheme = urlsplit(target), urlsplit(origin).scheme.lower()
        unusual = urlsplit(location).username is not None or not parts.hostname
    except ValueError as error:
        raise SourceError("redirects to something that is no URL") from error
    shown = without_secrets(target)
    if parts.scheme.lower() not in ("http", "https") or unusual:
        raise SourceError(f"redirects to {shown}, which is not followed")
    if parts.scheme.lower() != "https" and not (
        scheme == "http" and is_loopback(origin) and is_loopback(target)
    ):
        raise SourceError(f"redirects from {scheme} to http ({shown}), which is not followed")
    return target


def _refuse_status(answer: requests.Response, policy: Policy) -> None:
    status, said = answer.status_code, _status_line(answer)
    if status in (200, 206):
        return
    if status in _GONE:
        raise SourceGoneError(said)
    if status == 416:
        raise RangeError("the range asked for is not there")
    if status in (*_PASSING, *_REFUSED):
        wait = retry_after(answer.headers.get("Retry-After"), policy.clock())
        if wait is not None and wait > policy.max_retry_after:
            raise BusyError(f"{said}: the server asks to come back in {wait:.0f} s")
        raise PassingError(said, wait)
    raise (SourceError if status < 500 or status in _LASTING else BusyError)(said)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds a ``Retry-After`` header asks for, given as a number or as a date; None when it says nothing.

    Examples
    --------
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


def _response(
    answer: requests.Response,
    promised: tuple[Promise, ...],
    asked: tuple[int, int | None],
    known: Identity | None,
    policy: Policy,
) -> Response:
    headers = answer.headers
    partial = answer.status_code == 206
    length = _length(headers.get("Content-Length"))
    coding = _coding(headers.get("Content-Encoding", ""))
    size = length if not coding else None
    offset = 0
    if partial:
        if asked == (0, None) or coding:
            raise RangeError("the server sent a part that was not asked for")
        offset, size = _checked_range(headers.get("Content-Range", ""), *asked, length)
    step = policy.throttle.piece if policy.throttle else PIECE
    kept = 0 if known and asked[1] is not None else KEPT  # a range of a known file is copied together at once
    identity = Identity(
        headers.get("ETag") or None,
        headers.get("x-goog-generation") or None,
        headers.get("Last-Modified") or None,
        size,
    )
    if partial and known and not _same(identity, known):
        raise RangeError(known.change(identity) or "the server does not say which file the part is of")
    chunked = _is_chunked(headers.get("Transfer-Encoding"))
    return Response(
        answer.url,
        identity,
        _pieces(answer, None if chunked else length, chunked, step, kept),
        offset=offset,
        length=None if chunked else length,
        promises=tuple(dict.fromkeys(promised + server_promises(_header_lines(answer), partial=partial))),
        coding=coding,
        ends_marked=chunked or length is not None,
        partial=partial,
    )


def _checked_range(value: str, start: int, stop: int | None, length: int | None) -> tuple[int, int | None]:
    """Check ``Content-Range`` against what was asked for: from ``start`` to ``stop`` or the file's end."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if not match:
        raise RangeError(f"the server sent a part without saying which (Content-Range: {value!r})")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if stop is None:
        ends = total is None or last == total - 1
    else:
        ends = total is not None and last == min(stop, total) - 1
    fits = first == start <= last and ends
    if not fits or (length is not None and length != last - first + 1):
        raise RangeError(
            f"the server sent another part than asked for (Content-Range: {value!r}, from {start})"
        )
    return first, total


def _same(found: Identity, known: Identity) -> bool:
    """Whether a part belongs to the known file: nothing that both state differs, and something ties them.

    With ``If-Range`` the 206 itself is the tie; without it the generation must be stated and be the same.
    Where a checksum decides in the end, nothing is known but the size (see `Identity.unmarked`).
    """
    pairs = (
        (found.etag, known.etag),
        (found.generation, known.generation),
        (found.last_modified, known.last_modified if not known.etag else None),
        (found.size, known.size),
    )
    tied = known.if_range is not None or found.generation is not None or known == known.unmarked
    return tied and all(a is None or b is None or a == b for a, b in pairs)


def _length(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"\d{1,18}", value.strip()) else None


def _coding(value: str) -> str:
    """What is to be taken off: nothing, or ``gzip``.

    Many stores hand on whatever somebody put into this header: ``aws-chunked``, which was taken off before it
    was stored, or ``utf-8``, ``binary`` and ``none``, which pack nothing.
    """
    codings = [name for name in re.split(r"[\s,;]+", value.lower()) if name]
    packed = [name for name in codings if name in _PACKED or "gzip" in name]
    if not packed:
        return ""
    if len(packed) == 1 and packed[0] in ("gzip", "x-gzip"):
        return "gzip"
    raise SourceError(f"the server packs the file as {', '.join(packed)!r}, although asked not to")


def _is_chunked(value: str | None) -> bool:
    """Whether the body comes in chunks; no other framing is known."""
    framing = (value or "").strip(" \t").lower()
    if value is not None and framing not in ("chunked", "identity", ""):
        raise SourceError(f"the server sends the file framed as {framing!r}, which is not understood")
    return framing == "chunked"


def _header_lines(answer: requests.Response) -> list[tuple[str, str]]:
    """Every header line: requests joins repeated ones, urllib3 keeps them apart."""
    lines = getattr(answer.raw, "headers", None) or answer.headers
    return [(str(name), str(value)) for name, value in lines.items()]


def body_of(answer: requests.Response) -> Iterator[bytes | memoryview]:
    """The body of a small answer, of whatever length and framing.

    Raises
    ------
    SourceError, PassingError
        When it never ends, stands still or breaks off.
    """
    chunked = _is_chunked(answer.headers.get("Transfer-Encoding"))
    length = None if chunked else _length(answer.headers.get("Content-Length"))
    yield from _pieces(answer, length, chunked, 1 << 16, 0)


def _pieces(
    answer: requests.Response, length: int | None, chunked: bool, step: int, kept: int
) -> Iterator[bytes | memoryview]:
    """Yield the body as it arrives, so that a fault loses nothing of it."""
    from ckptkit.store.wire import LimitError, body

    stream = getattr(getattr(answer.raw, "_fp", None), "fp", None)
    if stream is None:
        return  # an answer that cannot have a body
    try:
        yield from body(stream, length, chunked, step, kept)
    except LimitError as error:
        raise error.error from error
    except TimeoutError as error:
        raise PassingError("the connection stalled") from error
    except (http.client.HTTPException, ValueError, OSError) as error:
        raise PassingError(f"the connection broke: {_brief(error)}") from error


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
