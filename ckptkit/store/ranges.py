"""Files on servers, read by ranges: the header of a checkpoint of many gigabytes costs a few requests.

Every range is of the file that the first answer described: a file that changes in between is an error. What
came is kept, so nothing is asked for twice. A server that does not answer range requests is not downloaded
from.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import quote

from ckptkit.base.budget import Budget
from ckptkit.base.errors import NetworkError, UsageError
from ckptkit.base.net import (
    Failures,
    PassingError,
    Policy,
    RangeError,
    RefusedError,
    SourceError,
    SourceGoneError,
)
from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.text import counted, human_bytes
from ckptkit.base.urls import at_revision, hub_place, is_commit, without_secrets
from ckptkit.formats.far_path import DOWNLOAD
from ckptkit.formats.json_text import JsonError, parse_json
from ckptkit.store.openers import Identity, Opener, Response
from ckptkit.store.remote import is_remote
from ckptkit.store.transfer import url_opener

_BLOCK = 64 << 10
_FIRST = 256 << 10
"""Bytes asked for first: most headers fit."""
_LEAST = 16 << 10
"""Bytes that are asked for from where somebody begins to read."""
_END_BLOCKS = 3
"""Blocks asked for with the last one of a file."""
_MOST_AHEAD = 4 << 20
"""Bytes asked for at once where a file is read from front to back, at most."""
_MOST_BYTES, _MOST_REQUESTS = 192 << 20, 4000
"""What may be asked of one file; no header needs so much."""
_MOST_LISTED = 32 << 20
"""Bytes of the hub's description of a repository."""

_HUB = re.compile(
    r"hf://(?P<kind>(?:datasets|spaces)/)?(?P<repository>[^/@?#]+/[^/@?#]+)(?:@(?P<revision>[^/?#]+))?"
    r"(?:/(?P<file>[^?#]*))?",
    re.IGNORECASE,
)


class RangedFiles:
    """Files on servers by their URLs, each opened once."""

    def __init__(self, policy: Policy | None = None, notes: Say = say_nothing) -> None:
        self._policy = policy or Policy(retries=2)  # nobody waits for a list as for a download
        self._stack = contextlib.ExitStack()
        self._opener = self._stack.enter_context(url_opener(self._policy, notes))
        self._files: dict[str, RangedFile | None] = {}

    def open(self, url: str) -> RangedFile | None:
        """The file at a URL; None where there is none."""
        if url not in self._files:
            with _translated(url):
                try:
                    self._files[url] = RangedFile(url, self._opener, self._policy)
                except SourceGoneError as error:
                    if isinstance(error.__cause__, PermissionError):
                        raise
                    self._files[url] = None
        return self._files[url]

    @property
    def summary(self) -> str:
        """What was transferred, in words; empty where nothing was."""
        files = [file for file in self._files.values() if file is not None]
        received, size = sum(file.received for file in files), sum(file.size for file in files)
        requests = sum(file.requests for file in files)
        if not requests:
            return ""
        return f"read {human_bytes(received)} of {human_bytes(size)} in {counted(requests, 'range request')}"

    def repository(self, url: str) -> tuple[str, list[str]]:
        """A repository on the Hugging Face hub at its commit of now, and the names of its files."""
        with _translated(url):
            return _retried(self._policy, lambda: described_repository(url, self._opener))


def described_repository(url: str, opener: Opener) -> tuple[str, list[str]]:
    """What the hub says of a repository: its address at the commit of now, and the names of its files."""
    found = _HUB.fullmatch(url)
    assert found is not None
    revision = quote(found["revision"] or "main", safe="%")  # a slash in it comes as %2F
    asked = f"{_hub()}/api/{found['kind'] or 'models/'}{found['repository']}/revision/{revision}"
    with opener(asked, 0, None) as response:
        raw = _received(response, _MOST_LISTED)
    if raw is None or response.coding:
        raise SourceError(f"the hub's answer is compressed, or longer than {human_bytes(_MOST_LISTED)}")
    text = raw.decode("utf-8", "replace")
    try:
        value = parse_json(text, Budget(len(text), JsonError))
        names = [str(one["rfilename"]) for one in value["siblings"]]
        commit = str(value["sha"])
    except (JsonError, KeyError, TypeError) as error:
        raise SourceError("the hub's answer does not list the files of a repository") from error
    if not re.fullmatch("[0-9a-f]{6,64}", commit):
        raise SourceError("the hub's answer does not name a commit")
    return f"hf://{found['kind'] or ''}{found['repository']}@{commit}", names


def at_commit(url: str, opener: Opener) -> str:
    """A file on the hub at the commit that its branch or tag is now; else the URL itself."""
    place = hub_place(url)
    if place is None or is_commit(place[1]):
        return url
    with contextlib.suppress(SourceError, PassingError, RangeError):
        repository, _ = described_repository("@".join(place), opener)
        return at_revision(url, repository.rpartition("@")[2]) or url
    return url


class RangedFile:
    """One file on a server, of which blocks are asked for as they are needed."""

    def __init__(self, url: str, opener: Opener, policy: Policy) -> None:
        self.requests = self.received = 0
        self._url, self._requested = url, requested_url(url)
        self._opener, self._policy = opener, policy
        self._blocks: dict[int, bytes] = {}
        self._known: Identity | None = None
        self._ahead, self._reached = _BLOCK, 0
        if is_remote(self._requested):  # whose packages say what an object is without reading it
            self._known = _retried(policy, self._described)
            self.size = self._known.size or 0
            first = min(_FIRST, self.size)
            data = self._ask(0, first) if first else b""
        else:
            data = self._ask(0, _FIRST)
        self._keep(0, data)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of a range inside the file."""
        first, last = start // _BLOCK, -(-stop // _BLOCK)
        wanted = last
        if first not in self._blocks:  # a header seldom ends with the block that it begins in
            wanted = max(last, -(-min(start + _LEAST, self.size) // _BLOCK))
        missing = [number for number in range(first, wanted) if number not in self._blocks]
        for begin, end in _runs(missing):
            with _translated(self._url):
                self._fetch(begin * _BLOCK, end * _BLOCK)
        data = b"".join(self._blocks[number] for number in range(first, last))
        return data[start - first * _BLOCK : stop - first * _BLOCK]

    def _fetch(self, start: int, stop: int) -> None:
        """Ask for some blocks, and for ever more behind them where a file is read from front to back."""
        self._ahead = min(2 * self._ahead, _MOST_AHEAD) if start == self._reached else _BLOCK
        stop = min(max(stop, start + self._ahead), self.size)
        if stop == self.size:  # where a zip archive and a TensorFlow index begin to be read
            start = self._before(start)
        if self.received + stop - start > _MOST_BYTES or self.requests >= _MOST_REQUESTS:
            raise UsageError(
                f"{without_secrets(self._url)}: its names and shapes are not in a header: "
                f"{human_bytes(self.received)} in {counted(self.requests, 'request')} were not enough",
                hint=DOWNLOAD,
            )
        self._keep(start, self._ask(start, stop))
        self._reached = stop

    def _before(self, start: int) -> int:
        """Where to begin instead, so that the end of a file comes at once."""
        for _ in range(_END_BLOCKS):
            if start and start // _BLOCK - 1 not in self._blocks:
                start -= _BLOCK
        return start

    def _keep(self, start: int, data: bytes) -> None:
        for at in range(0, len(data), _BLOCK):
            self._blocks.setdefault((start + at) // _BLOCK, data[at : at + _BLOCK])
        self._reached = start + len(data)

    def _described(self) -> Identity:
        with self._opener(self._requested, 0, None) as response:
            return response.identity

    def _ask(self, start: int, stop: int) -> bytes:
        return _retried(self._policy, lambda: self._ask_once(start, stop))

    def _ask_once(self, start: int, stop: int) -> bytes:
        known, tied = self._known, None
        if known is not None:  # a mark that is weak ties nothing for the server; it is compared here
            tied = known if known.can_resume or is_remote(self._requested) else known.unmarked
        self.requests += 1
        with self._opener(self._requested, start, tied, stop) as response:
            found = response.identity
            changed = known.change(found) if known else ""
            if changed:
                raise SourceError(f"{changed} since its first bytes were read; run the command again")
            if response.coding or found.size is None:
                raise SourceError(_NO_RANGES)
            wanted = min(stop, found.size) - start
            if not response.partial and (known is not None or found.size > wanted):
                raise SourceError(_NO_RANGES)
            if known is None:
                self._known, self.size = found, found.size
            data = _received(response, wanted)
            if data is None or len(data) != wanted:
                raise PassingError(f"the connection ended early, or brought other than {wanted} bytes")
        self.received += wanted
        if not response.accounted:
            self._policy.account(wanted)
        return data


_NO_RANGES = "the server does not answer range requests, so its header alone cannot be read"


def requested_url(url: str) -> str:
    """What is asked for: for a file on the Hugging Face hub, its plain address, which needs no package.

    >>> requested_url("hf://org/name@v1/model.safetensors")
    'https://huggingface.co/org/name/resolve/v1/model.safetensors'
    """
    found = _HUB.fullmatch(url)
    if found is None and url.lower().startswith("hf://"):
        example = "hf://org/name@revision/file"
        raise UsageError(f"{without_secrets(url)} names no repository", hint=f"the form is {example}")
    if found is None or not found["file"]:
        return url
    revision = quote(found["revision"] or "main", safe="%")
    place = f"{found['kind'] or ''}{found['repository']}"
    return f"{_hub()}/{place}/resolve/{revision}/{quote(found['file'], safe='/%')}"


def is_repository(url: str) -> bool:
    """Whether a URL names a repository on the Hugging Face hub, and no file in it.

    >>> is_repository("hf://org/name@v1"), is_repository("hf://org/name/model.safetensors")
    (True, False)
    """
    found = _HUB.fullmatch(url)
    return found is not None and not found["file"]


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"


def _received(response: Response, most: int) -> bytes | None:
    """The body of an answer; None where it is longer."""
    data = bytearray()
    for piece in response.body:
        data += piece
        if len(data) > most:
            return None
    return bytes(data)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of consecutive numbers.

    >>> list(_runs([1, 2, 5]))
    [(1, 3), (5, 6)]
    """
    while numbers:
        count = next((n for n, one in enumerate(numbers) if one != numbers[0] + n), len(numbers))
        yield numbers[0], numbers[0] + count
        numbers = numbers[count:]


_T = TypeVar("_T")


def _retried(policy: Policy, ask: Callable[[], _T]) -> _T:
    """What a request gives, asked again after faults that may pass."""
    failures = Failures(policy)
    while True:
        try:
            return ask()
        except PassingError as error:
            policy.sleep(failures.wait_for(error, progress=False))


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn what may go wrong with a request into an error for the user."""
    shown = without_secrets(url)
    try:
        yield
    except RangeError as error:
        raise NetworkError(f"{shown}: {error}", hint=DOWNLOAD) from error
    except RefusedError as error:
        login = (
            "log in with 'hf auth login', or set HF_TOKEN,"
            if _HUB.fullmatch(url)
            else "give a login in .netrc,"
        )
        raise NetworkError(f"{shown}: {error}", hint=f"{login} if it needs one") from error
    except (SourceError, PassingError) as error:
        hint = DOWNLOAD if _NO_RANGES in str(error) else "check the address and the network"
        raise NetworkError(f"{shown}: {error}", hint=hint) from error
