"""HTTP(S): one GET, its redirects, and what its headers say.

Redirects are followed by hand, so that none leads from https to http, to another scheme, in a circle, or
carries credentials to another host. TLS certificates are always verified.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ipaddress
import re
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ckptkit._version import __version__
from ckptkit.store.integrity import Promise, redirect_promises, server_promises
from ckptkit.store.transport import (
    PIECE,
    Identity,
    PassingError,
    Policy,
    RangeError,
    Response,
    SourceError,
    SourceGoneError,
    without_secrets,
)

if TYPE_CHECKING:
    import requests

USER_AGENT = f"ckptkit/{__version__}"
_GONE = (401, 403, 404, 410)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class HttpClient:
    """A session: connections are kept between requests, nothing else is.

    Parameters
    ----------
    policy : Policy
        Timeouts and bounds.
    """

    def __init__(self, policy: Policy) -> None:
        import requests

        self._policy = policy
        self._session = requests.Session()
        self._session.headers.clear()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @contextlib.contextmanager
    def open(self, url: str, start: int = 0, known: Identity | None = None) -> Generator[Response]:
        """GET a URL, from byte ``start`` on if the file is still the ``known`` one.

        Raises
        ------
        SourceGoneError
            On 401, 403, 404 and 410.
        SourceError
            On a refusal that will not pass: other 4xx, a redirect not to be followed, a bad certificate.
        PassingError
            On a fault that may pass.
        RangeError
            When ``start`` is not zero and the answer does not continue the known file.
        """
        headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if known and known.if_range:
                headers["If-Range"] = known.if_range
        with contextlib.ExitStack() as stack:
            answer, promised = self._follow(url, headers, stack)
            _refuse_status(answer, self._policy)
            yield _response(answer, promised, start, known)

    def _follow(
        self, url: str, headers: dict[str, str], stack: contextlib.ExitStack
    ) -> tuple[requests.Response, tuple[Promise, ...]]:
        promised: tuple[Promise, ...] = ()
        for _ in range(self._policy.max_redirects + 1):
            answer = self._get(url, headers)
            stack.callback(answer.close)
            location = answer.headers.get("Location")
            if answer.status_code not in _REDIRECTS:
                return answer, promised
            if not location:
                raise SourceError(f"answered {answer.status_code} without saying where to go")
            promised += redirect_promises(_header_lines(answer))
            url = checked_redirect(url, location)
        raise SourceError(f"redirects in a circle (more than {self._policy.max_redirects})")

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        import requests

        timeout = (self._policy.connect_timeout, self._policy.read_timeout)
        # No proxy reaches this machine's loopback, but requests would ask one unless NO_PROXY forbids it.
        direct: Any = {"http": None, "https": None} if is_loopback(url) else None
        try:
            # Through the adapter: the session itself reads a redirect's body whole, however large.
            request = self._session.prepare_request(requests.Request("GET", url, headers=headers))
            settings = self._session.merge_environment_settings(url, direct, True, None, None)
            return self._session.get_adapter(url).send(
                request,
                stream=True,
                timeout=timeout,
                verify=settings["verify"] or True,
                cert=settings["cert"],
                proxies=settings["proxies"],
            )
        except requests.exceptions.SSLError as error:
            raise SourceError(f"the TLS connection is not to be trusted: {_brief(error)}") from error
        except requests.exceptions.Timeout as error:
            raise PassingError("no answer in time") from error
        except ValueError as error:  # InvalidURL, InvalidSchema, UnicodeError and a bare one of urllib
            raise SourceError(f"not a URL that can be fetched: {_brief(error)}") from error
        except requests.exceptions.RequestException as error:
            raise PassingError(f"connection failed: {_brief(error)}") from error


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


def checked_redirect(origin: str, location: str) -> str:
    """Where a redirect leads, if it is safe to follow.

    Allowed: to https from anywhere, to http from http. Never from https to http (the bytes would come
    unprotected), never to another scheme, never with a user name in it.

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
        unusual = parts.username is not None or not parts.hostname
    except ValueError as error:
        raise SourceError("redirects to something that is no URL") from error
    shown = without_secrets(target)
    if parts.scheme.lower() not in ("http", "https") or unusual:
        raise SourceError(f"redirects to {shown}, which is not followed")
    if scheme == "https" and parts.scheme.lower() != "https":
        raise SourceError(f"redirects from https to http ({shown}), which is not followed")
    return target


def _refuse_status(answer: requests.Response, policy: Policy) -> None:
    status = answer.status_code
    said = f"{status} {http.client.responses.get(status, answer.reason or '')}".strip()
    if status in (200, 206):
        return
    if status in _GONE:
        raise SourceGoneError(said)
    if status == 416:
        raise RangeError("the range asked for is not there")
    if status in _PASSING:
        wait = retry_after(answer.headers.get("Retry-After"), policy.clock())
        if wait is not None and wait > policy.max_retry_after:
            raise SourceError(f"{said}: the server asks to come back in {wait:.0f} s")
        raise PassingError(said, wait)
    raise SourceError(said)


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
    answer: requests.Response, promised: tuple[Promise, ...], start: int, known: Identity | None
) -> Response:
    headers = answer.headers
    partial = answer.status_code == 206
    length = _length(headers.get("Content-Length"))
    coding = _coding(headers.get("Content-Encoding", ""))
    size = length if not coding else None
    offset = 0
    if partial:
        if not start or coding:
            raise RangeError("the server sent a part that was not asked for")
        offset, size = _checked_range(headers.get("Content-Range", ""), start, length)
    identity = Identity(
        headers.get("ETag") or None,
        headers.get("x-goog-generation") or None,
        headers.get("Last-Modified") or None,
        size,
    )
    if partial and known and not _same(identity, known):
        raise RangeError("the file on the server has changed")
    chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
    return Response(
        answer.url,
        identity,
        _pieces(answer),
        offset=offset,
        length=None if chunked else length,
        promises=tuple(dict.fromkeys(promised + server_promises(_header_lines(answer), partial=partial))),
        coding=coding,
        ends_marked=chunked or length is not None,
    )


def _checked_range(value: str, start: int, length: int | None) -> tuple[int, int | None]:
    """Check ``Content-Range`` against what was asked for: the rest of the file from ``start``, all of it."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if not match:
        raise RangeError(f"the server sent a part without saying which (Content-Range: {value!r})")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    fits = first == start <= last and (total is None or last == total - 1)
    if not fits or (length is not None and length != last - first + 1):
        raise RangeError(
            f"the server sent another part than asked for (Content-Range: {value!r}, from {start})"
        )
    return first, total


def _same(found: Identity, known: Identity) -> bool:
    """Whether a part belongs to the known file: nothing that both state differs, and something ties them.

    With ``If-Range`` the 206 itself is the tie; without it the generation must be stated and be the same.
    """
    pairs = (
        (found.etag, known.etag),
        (found.generation, known.generation),
        (found.last_modified, known.last_modified if not known.etag else None),
        (found.size, known.size),
    )
    tied = known.if_range is not None or found.generation is not None
    return tied and all(a is None or b is None or a == b for a, b in pairs)


def _length(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"\d{1,18}", value.strip()) else None


def _coding(value: str) -> str:
    coding = value.strip().lower()
    if coding in ("", "identity"):
        return ""
    if coding in ("gzip", "x-gzip"):
        return "gzip"
    raise SourceError(f"the server packs the file as {coding!r}, although asked not to")


def _header_lines(answer: requests.Response) -> list[tuple[str, str]]:
    """Every header line: requests joins repeated ones, urllib3 keeps them apart."""
    lines = getattr(answer.raw, "headers", None) or answer.headers
    return [(str(name), str(value)) for name, value in lines.items()]


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    import urllib3

    raw = answer.raw
    try:
        if hasattr(raw, "read1"):  # urllib3 2: hands over what has arrived, so a fault loses none of it
            while piece := raw.read1(PIECE, decode_content=False):
                yield piece
        else:
            yield from raw.stream(PIECE, decode_content=False)
    except urllib3.exceptions.ReadTimeoutError as error:
        raise PassingError("the connection stalled") from error
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        raise PassingError(f"the connection broke: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    """The innermost reason of requests' nested errors, on one line."""
    seen: BaseException = error
    for _ in range(8):
        inner = getattr(seen, "reason", None) or seen.__cause__ or seen.__context__
        if not isinstance(inner, BaseException):
            break
        seen = inner
    text = " ".join(str(getattr(seen, "strerror", None) or seen).split())
    return text.rpartition(">: ")[2][:200] or type(seen).__name__
