"""``--output``: a file, a folder, standard output, or a URL in a store to which the result is copied."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ckptkit.base.errors import UsageError
from ckptkit.base.files import open_file_of, storage_error
from ckptkit.base.home import user_path
from ckptkit.base.text import counted
from ckptkit.formats.names import is_folder
from ckptkit.workspace import STANDARD

if TYPE_CHECKING:
    from typing_extensions import Self

    from ckptkit.cli.options import State


def one_file(text: str | None) -> Path | None:
    """The file that ``--output`` names; None for standard output, to which the result is printed anyway."""
    if text is None or text == STANDARD:
        return None
    if is_folder(text):
        raise UsageError(f"{text} is a folder", hint="name a file in it")
    return user_path(text)


class Place:
    """Where a command's results go; use as a context manager.

    What goes to a store or to standard output is written whole into a temporary folder (``TMPDIR`` says
    where), checked there as any other, and then copied, what leads to other files (an index) last. A folder,
    and whatever ends in a slash, takes the default name; for several results a name without an ending is a
    folder, too.

    ``url`` is None for a path. ``file`` is the name given where it is that of one file, whose ending says
    which format. ``path`` is what to hand to whoever writes, None where the user gave nothing; ``folder``
    says whether results get their default names in it. ``to`` is the format that the user names.
    """

    def __init__(
        self,
        state: State,
        text: str | None,
        *,
        force: bool = False,
        results: int = 1,
        to: str | None = None,
    ) -> None:
        self._force = force
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._standard = text == STANDARD or (text is not None and open_file_of(Path(text)) == 1)
        self.url = _checked(text) if text is not None and "://" in text else None
        self.path = None if text is None or self.url or self._standard else user_path(text)
        self.folder = self._standard or (text is not None and is_folder(text, results=results, to=to))
        self.file = None if self.folder else text
        if results > 1 and (self.file or self._standard):
            raise UsageError(
                f"--output {text} is one file, but there are {counted(results, 'result')}",
                hint="give -o FOLDER/",
            )
        if self._standard and state.output.as_json:
            raise UsageError(
                "--json and -o - would both write to standard output", hint="leave one of them out"
            )
        if self._standard and sys.stdout.isatty():
            raise UsageError("standard output is a terminal", hint="send it into a file or a pipe: … > FILE")

    def __enter__(self) -> Self:
        if self.is_elsewhere:
            self._scratch = tempfile.TemporaryDirectory(prefix="ckptkit-upload-")
            self.path = Path(self._scratch.name, (self.url or "").rpartition("/")[2])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()

    @property
    def is_elsewhere(self) -> bool:
        """Whether what is written goes on from a temporary folder."""
        return bool(self.url) or self._standard

    def refuse_existing(self) -> None:
        """Say before the work that the object exists; of a path, whoever writes says so."""
        if self.url and not self.folder:
            from ckptkit.store.remote import refuse_existing_object

            refuse_existing_object(self.url, force=self._force)

    def refuse_several(self, what: str) -> None:
        """Raise UsageError for what is more than one file, where that is to go to standard output."""
        if self._standard:
            raise UsageError(f"{what}, which standard output cannot take", hint="give a folder or a file")

    def shown(self, path: Path) -> str:
        """What to call a result: the URL where it goes to a store."""
        return STANDARD if self._standard else self._prefix + path.name if self.url else str(path)

    def deliver(self, path: Path) -> str | None:
        """Copy a result to where it goes; returns what to call it, None for standard output."""
        if self._standard:
            _to_standard_output(path)
            return None
        if self.url and self._scratch is not None:
            from ckptkit.store.remote import refuse_existing_object, upload

            scratch = Path(self._scratch.name)
            found = (file for file in scratch.rglob("*") if file.is_file())
            files = {
                file: file.relative_to(scratch).as_posix() for file in sorted(found, key=_leads_to_others)
            }
            for name in files.values():  # all are looked for before the first is written
                refuse_existing_object(self._prefix + name, force=self._force)
            for file, name in files.items():
                upload(file, self._prefix + name, force=self._force)
                with contextlib.suppress(OSError):
                    file.unlink()
        return self.shown(path)

    @property
    def _prefix(self) -> str:
        assert self.url is not None
        return self.url.rpartition("/")[0] + "/"


def _to_standard_output(path: Path) -> None:
    """Write a file's bytes, and nothing else."""
    with path.open("rb") as file:
        try:
            sys.stdout.flush()
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise storage_error(error, "standard output") from error


def _checked(url: str) -> str:
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
    return file.name.endswith((".index", ".index.json", ".metadata")), file.name
