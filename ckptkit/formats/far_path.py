"""A file on a server as a path: readers open it like any other, and only what they ask for is transferred.

The path is what messages name; its bytes come from a `FarFile`, which `ckptkit.store.ranges` makes.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote

from ckptkit.base.urls import without_secrets

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]

    from typing_extensions import Self

    _Path = Path
else:
    _Path = type(Path())  # what can be derived from before Python 3.12


DOWNLOAD = "download the file, then give its path"
"""What to do where a file must be at hand."""


class FarFile(Protocol):
    """A file whose bytes are asked for by ranges."""

    size: int

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of a range inside the file."""
        ...


class FarFiles(Protocol):
    """Opens files by URL, each once."""

    def open(self, url: str) -> FarFile | None:
        """The file at a URL; None where there is none."""
        ...


class FarPath(_Path):
    """A URL in the place of a path; it is shown without what is secret in it."""

    def __new__(cls, url: str, _files: FarFiles) -> Self:
        """Make a path of the URL's public part."""
        return super().__new__(cls, without_secrets(url))

    def __init__(self, url: str, files: FarFiles) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(without_secrets(url))
        self._url, self._files = url, files
        self._shown = without_secrets(url)

    def __str__(self) -> str:
        return self._shown

    def __fspath__(self) -> str:
        return self._shown

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    @property
    def far(self) -> FarFile:
        """The file; FileNotFoundError where there is none."""
        found = self._files.open(self._url)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return found

    # -- neighbours ------------------------------------------------------------------------------------------

    def _with(self, path: str) -> Self:
        """Another path on the server; what a query grants may hold for it too."""
        return type(self)(path + self._url[len(self._before_query) :], self._files)

    @property
    def _before_query(self) -> str:
        return self._url.partition("#")[0].partition("?")[0]

    @property
    def name(self) -> str:
        """The last part of the URL's path, as a file system would have it."""
        return unquote(self._before_query.rpartition("/")[2])

    @property
    def parent(self) -> Self:
        """What the file is in."""
        return self._with(self._before_query.rpartition("/")[0])

    def with_name(self, name: str) -> Self:
        """A file beside this one."""
        return self.parent / name

    def __truediv__(self, name: str | os.PathLike[str]) -> Self:
        # What a file says of its neighbours leads nowhere else on its server.
        return self._with(f"{self._before_query.rstrip('/')}/{quote(os.fspath(name))}")

    def with_suffix(self, suffix: str) -> Self:
        """A file beside this one with another end of its name."""
        return self.with_name(f"{self.stem}{suffix}")

    def absolute(self) -> Self:
        """The same: a URL is absolute."""
        return self

    def resolve(self, strict: bool = False) -> Self:
        """The same: there are no links."""
        return self

    # -- what a file system would say ------------------------------------------------------------------------

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """What is known of the file: that it is one, and its size."""
        return os.stat_result((stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, self.far.size, 0, 0, 0))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the server has it."""
        return self._files.open(self._url) is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the server has it."""
        return self.exists()

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """False: servers list no folders."""
        return False

    def is_symlink(self) -> bool:
        """False: redirects are followed by who asks."""
        return False

    def iterdir(self) -> Generator[Self]:
        """Refuse, as a folder does that may not be listed."""
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self))
        yield self

    def glob(self, pattern: str, **_: Any) -> Generator[Self]:
        """Nothing: servers list no folders."""
        yield from ()

    def open(self, *_: Any, **__: Any) -> Any:
        """Open it for reading bytes."""
        return _Stream(self.far)


def as_path(path: Path | str) -> Path:
    """A path as it is, a far one too; text as a path on this machine."""
    return path if isinstance(path, Path) else Path(path)


class _Stream(io.RawIOBase):
    """The bytes of a far file, with a position."""

    def __init__(self, file: FarFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._file.size)[whence])
        return self._at

    def readinto(self, into: Buffer) -> int:
        view = memoryview(into).cast("B")
        stop = min(self._at + len(view), self._file.size)
        data = self._file.read(self._at, stop) if stop > self._at else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
