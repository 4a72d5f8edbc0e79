"""Pictures as people name them: files, folders, URLs, standard input, or pictures that are decoded already.

What is named is looked for at once; it is read and decoded when its turn comes, so that a folder of any size
takes the memory of one batch. URLs go by the rules of the store: certificates are verified, redirects
followed only to where it is safe, faults that may pass borne a few times. Nothing of them enters the cache: a
picture has no checksum to compare it with.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from ckptkit.base.errors import CkptkitError, FormatError, NetworkError, NotFoundError, UsageError
from ckptkit.base.files import storage_error
from ckptkit.base.net import (
    BusyError,
    Failures,
    MissingFileError,
    PassingError,
    Policy,
    SourceError,
    SourceGoneError,
)
from ckptkit.base.urls import is_local, without_secrets
from ckptkit.models.images.decoding import open_image
from ckptkit.store.openers import Opener, Response
from ckptkit.store.sources import Mirror, resolve
from ckptkit.store.transfer import decoded, url_opener

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.base.progress import Progress

_BY_HAND = "download it yourself and give the file"
MOST_BYTES = 50_000_000
"""Largest picture that is taken from the network or a pipe."""

PATIENCE = Policy(read_timeout=30.0, retries=2)


def download_picture(
    url: str,
    *,
    name: str,
    policy: Policy = PATIENCE,
    most_bytes: int = MOST_BYTES,
    progress: Progress | None = None,
) -> bytes:
    """Fetch a picture."""
    with url_opener(policy) as opener:
        failures = Failures(policy)
        while True:
            try:
                return _receive(opener, url, name, most_bytes, progress)
            except SourceGoneError as error:
                kind = (
                    NotFoundError if is_local(url) or str(error).startswith(("404", "410")) else NetworkError
                )
                raise kind(f"{name}: {error}", hint="check the URL") from error
            except MissingFileError as error:
                raise NotFoundError(f"{name}: {error}", hint="check the path") from error
            except SourceError as error:
                if is_local(url):
                    raise FormatError(name, str(error)) from error
                hint = "try again later" if isinstance(error, BusyError) else _BY_HAND
                raise NetworkError(f"{name}: {error}", hint=hint) from error
            except PassingError as error:
                try:
                    policy.sleep(failures.wait_for(error, progress=False))
                except SourceError as last:
                    hint = "try again later" if isinstance(last, BusyError) else _BY_HAND
                    raise NetworkError(f"{name}: {error}", hint=hint) from error


def _receive(opener: Opener, url: str, name: str, most_bytes: int, progress: Progress | None) -> bytes:
    """Make one request and read its answer whole."""
    with ExitStack() as stack:
        response = stack.enter_context(opener(url, 0, None))
        if response.length is not None and response.length > most_bytes:
            raise _too_large(name, most_bytes)
        advance = stack.enter_context(progress(f"fetching {name}", response.length)) if progress else None
        content = bytearray()
        for piece in _uncoded(response, urlsplit(url).path):
            content += piece
            if advance is not None:
                advance(len(piece))
            if len(content) > most_bytes:
                raise _too_large(name, most_bytes)
        if response.length is not None and not response.coding and len(content) != response.length:
            raise PassingError(f"connection lost after {len(content):,} of {response.length:,} bytes")
        return bytes(content)


def _uncoded(response: Response, path: str) -> Iterator[bytes | memoryview]:
    return decoded(response.body, path) if response.coding else response.body


def _too_large(name: str, most_bytes: int) -> FormatError:
    return FormatError(name, f"more than {most_bytes:,} bytes, too large for a picture")


STDIN = "-"
"""The name of standard input."""

ENDINGS = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".avif",
        ".jp2",
    }
)
"""File names, in lower case, that are taken for pictures when a folder is looked through."""

_DEEPEST, _WAYS = 100, 64

_URL_SCHEMES = ("http", "https", "file")


@dataclass(frozen=True)
class NamedPicture:
    """A picture that has not been read yet."""

    name: str  # what messages and results call it
    read: Callable[[], Image]  # reads and decodes it: gives an RGB picture, or raises one of ckptkit's errors


@dataclass(frozen=True)
class Fault:
    """A picture that cannot be had."""

    name: str
    error: CkptkitError


@dataclass(frozen=True)
class Gathering:
    """What was named, in order, and what of it is not there."""

    pictures: tuple[NamedPicture, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def is_single(self) -> bool:
        """Whether it is about one picture alone, whose fault is then the fault of all."""
        return len(self.pictures) + len(self.faults) == 1


@dataclass(frozen=True)
class Gatherer:
    """Finds pictures."""

    recursive: bool = False  # look into folders' folders too
    offline: bool = False  # refuse URLs that need the network
    mirrors: tuple[Mirror, ...] = ()  # rules for URLs
    stdin: BinaryIO | None = None  # read for ``-``
    progress: Progress | None = None  # shows how far a download is

    def gather(self, named: Iterable[str | Path | Image]) -> Gathering:
        """Look for every picture, without reading one."""
        pictures: list[NamedPicture] = []
        faults: list[Fault] = []
        names = list(named)
        if sum(name == STDIN for name in names if isinstance(name, str)) > 1:
            raise UsageError(f"{STDIN} is named twice", hint="standard input holds one picture")
        for number, name in enumerate(names):
            try:
                pictures += self._find(name, number)
            except CkptkitError as error:
                shown = without_secrets(name) if isinstance(name, str) and is_url(name) else str(name)
                faults.append(Fault(shown, error))
        return Gathering(tuple(pictures), tuple(faults))

    def _find(self, name: str | Path | Image, number: int) -> list[NamedPicture]:
        if isinstance(name, str) and name == STDIN:
            return [NamedPicture("stdin", self._read_stdin)]
        if isinstance(name, str) and is_url(name):
            return [self._at_url(name)]
        if isinstance(name, (str, Path)):
            return self._at_path(Path(name))
        if hasattr(name, "convert"):
            return [_decoded_already(name, number)]
        raise UsageError(f"{name!r} is not a picture", hint="give paths, URLs or PIL images")

    def _at_path(self, path: Path) -> list[NamedPicture]:
        if path.is_dir():
            return [_in_file(file) for file in self._in_folder(path)]
        if not path.exists():
            raise NotFoundError(f"{path}: no such image", hint="check the path")
        return [_in_file(path)]

    def _in_folder(self, folder: Path) -> list[Path]:
        found = files_below(folder) if self.recursive else folder.iterdir()
        files = sorted(file for file in found if file.suffix.lower() in ENDINGS and file.is_file())
        if not files:
            deeper = "" if self.recursive else "; --recursive looks into its folders too"
            raise NotFoundError(
                f"{folder}: no image in this folder", hint=f"looked for {', '.join(sorted(ENDINGS))}{deeper}"
            )
        return files

    def _at_url(self, url: str) -> NamedPicture:
        shown, used = without_secrets(url), resolve(url, self.mirrors)
        if self.offline and not is_local(used):
            raise NetworkError(
                f"{shown} is on the network, and --offline forbids fetching it", hint="run without --offline"
            )
        return NamedPicture(
            shown, lambda: open_image(download_picture(used, name=shown, progress=self.progress), shown)
        )

    def _read_stdin(self) -> Image:
        if self.stdin is None or self.stdin.isatty():
            raise UsageError("no picture on standard input", hint="send one into it: … < cat.jpg")
        return _read_stream(self.stdin, "stdin")


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; hidden files and folders apart."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        raise storage_error(error, folder) from error
    for one in found:
        if one.is_symlink() and not os.path.exists(one.path):  # noqa: PTH110 (pathlib's raises)
            target = Path(one.path).readlink()
            raise NotFoundError(
                f"{one.path}: its link to {target} cannot be followed", hint="fix the link, or remove it"
            )
    return found


def files_below(
    folder: Path,
    circle: Callable[[Path], None] = lambda _link: None,
    above: Sequence[Path] = (),
    *,
    ways: Counter[tuple[int, int]] | None = None,
) -> Iterator[Path]:
    """Files in a folder and all below it, hidden ones apart. Links to folders are followed."""
    ways = Counter() if ways is None else ways
    try:
        status = folder.stat()
        again = any(folder.samefile(other) for other in above)
    except OSError as error:
        raise storage_error(error, folder) from error
    ways[status.st_dev, status.st_ino] += 1
    if len(above) > _DEEPEST:
        raise FormatError(folder, f"more than {_DEEPEST} folders deep")
    if ways[status.st_dev, status.st_ino] > _WAYS:
        raise FormatError(folder, f"links lead to it by more than {_WAYS} ways", hint="remove some of them")
    if again:
        circle(folder)
        return
    for entry in entries_of(folder):
        if entry.is_dir():
            yield from files_below(Path(entry.path), circle, [*above, folder], ways=ways)
        else:
            yield Path(entry.path)


def is_url(name: str) -> bool:
    """Whether a name is a URL of a kind that is fetched.

    >>> is_url("https://a.org/cat.jpg"), is_url("cat.jpg"), is_url("https-cats/1.jpg")
    (True, False, False)
    """
    return "://" in name and urlsplit(name).scheme.lower() in _URL_SCHEMES


def _in_file(path: Path) -> NamedPicture:
    name = str(path).encode(errors="backslashreplace").decode()  # a name may be no Unicode at all
    return NamedPicture(name, lambda: open_image(path, name) if path.is_file() else _read_pipe(path, name))


def _read_pipe(path: Path, name: str) -> Image:
    """Read what a shell's ``<(command)`` names: nothing can be looked at twice there."""
    try:
        with path.open("rb") as stream:
            return _read_stream(stream, name)
    except OSError as error:
        raise FormatError(name, f"cannot be read ({error.strerror})") from error


def _read_stream(stream: BinaryIO, name: str) -> Image:
    content = stream.read(MOST_BYTES + 1)
    if not content:
        raise FormatError(name, "empty", hint="what should have written the picture wrote nothing")
    if len(content) > MOST_BYTES:
        raise FormatError(name, f"more than {MOST_BYTES:,} bytes, too large for a picture")
    return open_image(content, name)


def _decoded_already(picture: Image, number: int) -> NamedPicture:
    """Call it by its file, where it knows one, else by its place."""
    from ckptkit.models.images.decoding import upright_rgb

    name = str(getattr(picture, "filename", "") or f"picture {number + 1}")
    return NamedPicture(name, lambda: upright_rgb(picture, name))
