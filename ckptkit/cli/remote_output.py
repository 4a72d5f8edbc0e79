"""``--output`` as a path, or as a URL in a store to which what was written here is then copied."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Output:
    """Where a command's result goes; use as a context manager.

    A result for a store is written whole into a temporary folder (``TMPDIR`` says where), checked there as
    any other, and then put into the store, what leads to other files (an index) last.

    Parameters
    ----------
    text : str or None
        What the user gave: a path, or ``s3://``, ``gs://``, ``az://``, ``hf://`` with the object's name; a
        URL that ends in a slash takes the default name.
    force : bool
        Replace what is there.

    Attributes
    ----------
    url : str or None
        The URL, None for a path.
    path : Path or None
        What to hand to whoever writes; None where the user gave nothing.

    Raises
    ------
    UsageError
        When the URL is of another kind, or its last part cannot be a file name.
    """

    def __init__(self, text: str | None, *, force: bool = False) -> None:
        self._force = force
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.url = _checked(text) if text is not None and "://" in text else None
        self.path = None if text is None or self.url else Path(text)

    @property
    def takes_many(self) -> bool:
        """Whether several results may go there, each under its own name."""
        return self.url.endswith("/") if self.url else self.path is None or self.path.is_dir()

    def __enter__(self) -> Self:
        if self.url:
            self._folder = tempfile.TemporaryDirectory(prefix="ckptkit-upload-")
            name = self.url.rpartition("/")[2]
            self.path = Path(self._folder.name, name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def refuse_existing(self) -> None:
        """Say before the work that the object exists; of a path, whoever writes says so.

        Raises
        ------
        UsageError
            When it exists and ``force`` is false.
        """
        if self.url and not self.url.endswith("/"):
            from ckptkit.store.remote import refuse_existing_object

            refuse_existing_object(self.url, force=self._force)

    def shown(self, path: Path) -> str:
        """What to call a result: the URL where it goes to a store."""
        return self._prefix + path.name if self.url else str(path)

    def deliver(self, path: Path) -> str:
        """Copy a result to its store, if that is where it goes; returns what to call it.

        Raises
        ------
        UsageError, NetworkError, IntegrityError, MissingDependencyError
            As `ckptkit.store.remote.upload` raises them.
        """
        if self.url and self._folder is not None:
            from ckptkit.store.remote import refuse_existing_object, upload

            files = sorted(Path(self._folder.name).iterdir(), key=_leads_to_others)
            for file in files:  # all are looked for before the first is written
                refuse_existing_object(self._prefix + file.name, force=self._force)
            for file in files:
                upload(file, self._prefix + file.name, force=self._force)
                with contextlib.suppress(OSError):
                    file.unlink()
        return self.shown(path)

    @property
    def _prefix(self) -> str:
        assert self.url is not None
        return self.url.rpartition("/")[0] + "/"


def _checked(url: str) -> str:
    from ckptkit.errors import UsageError
    from ckptkit.store.cache import is_safe_file_name
    from ckptkit.store.remote import STORES, is_remote

    name = url.rpartition("/")[2]
    if not is_remote(url):
        kinds = ", ".join(f"{scheme}://" for scheme in STORES)
        raise UsageError(f"--output {url}: no place to write to", hint=f"give a path, or a URL of {kinds}")
    if name and not is_safe_file_name(name):
        raise UsageError(f"--output {url}: {name!r} cannot be a file name", hint="choose another name")
    return url


def _leads_to_others(file: Path) -> tuple[bool, str]:
    return file.name.endswith((".index", ".index.json")), file.name
