"""Write a TensorFlow V2 checkpoint: plain names, one data file, byte for byte as TensorFlow's Saver would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ckptkit.checksums import crc32c
from ckptkit.errors import ConversionError, storage_error
from ckptkit.formats.base import Check
from ckptkit.formats.leveldb_table import build_table, mask
from ckptkit.formats.staging import StagedFile, check_or_remove
from ckptkit.formats.tf_bundle_index import index_path, shard_path
from ckptkit.formats.tf_bundle_proto import BundleEntry, BundleHeader, encode_entry, encode_header
from ckptkit.tensors import Array, TensorSpec, byte_pieces

if TYPE_CHECKING:
    from typing_extensions import Self


class TfBundleWriter:
    """A TensorFlow checkpoint being written; see `ckptkit.formats.base.Writer`.

    Parameters
    ----------
    path : Path
        The prefix; ``<prefix>.data-00000-of-00001`` and ``<prefix>.index`` are written.
    specs : iterable of TensorSpec
        Every tensor.
    metadata : Mapping of str to str
        Kept in the index's header, in a field that TensorFlow skips.
    force : bool
        Whether an existing checkpoint may be replaced.

    Attributes
    ----------
    order : sequence of str
        Names in the order `write` wants them: sorted by their UTF-8 bytes, as TensorFlow lays them out.

    Raises
    ------
    UsageError
        When a file exists and ``force`` is false.
    ConversionError
        When a name occurs twice, or a name or element type cannot stand in such a checkpoint.
    StorageError
        When the disk refuses.
    """

    concurrent = False

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> None:
        path = Path(path)
        self.prefix = path.with_name(path.name.removesuffix(".index") or path.name)
        self._metadata = dict(metadata)
        self._specs: dict[str, TensorSpec] = {}
        for spec in specs:
            self._add(spec)
        self.order: Sequence[str] = sorted(self._specs, key=lambda name: name.encode())
        self._entries: dict[str, BundleEntry] = {}
        with contextlib.ExitStack() as stack:
            self._index = stack.enter_context(StagedFile(index_path(self.prefix), force=force))
            self._data = stack.enter_context(StagedFile(shard_path(self.prefix, 0, 1), force=force))
            self._stack = stack.pop_all()

    def _add(self, spec: TensorSpec) -> None:
        if spec.name in self._specs:
            raise ConversionError(f"{self.prefix}: two tensors have the name {spec.name!r}")
        if not _is_variable_name(spec.name):
            raise ConversionError(f"{self.prefix}: {spec.name!r} is no name for a TensorFlow variable")
        if spec.dtype.tf is None:
            raise ConversionError(f"{self.prefix}: {spec.name!r}: TensorFlow has no {spec.dtype}")
        self._specs[spec.name] = spec

    def write(self, name: str, array: Array) -> int:
        """Write one tensor, cast to its spec's dtype; returns crc32c (not masked) of the bytes written.

        Raises
        ------
        ValueError
            When it is not this tensor's turn, or its shape is not its spec's.
        StorageError
            When the disk refuses.
        """
        if len(self._entries) >= len(self.order) or name != self.order[len(self._entries)]:
            raise ValueError(f"{name!r} is not the next tensor of {self.prefix}")
        spec = self._specs[name]
        if array.shape != spec.shape:
            raise ValueError(f"{name!r} has shape {array.shape}, announced was {spec.shape}")
        start = self._data.position
        crc = 0
        for piece in byte_pieces(array, spec.dtype):
            self._data.append(piece)
            crc = crc32c(piece, crc)
        number = spec.dtype.tf or 0
        size = self._data.position - start
        self._entries[name] = BundleEntry(number, spec.shape, 0, start, size, mask(crc))
        return crc

    def finish(self, check: Check | None = None) -> list[Path]:
        """Sync and rename, the index last: a checkpoint exists if and only if its index does.

        Parameters
        ----------
        check : callable, optional
            Given the prefix when both files stand; what it raises removes them.

        Raises
        ------
        ValueError
            When a tensor was never written.
        StorageError
            When the disk refuses.
        """
        missing = len(self.order) - len(self._entries)
        if missing:
            raise ValueError(f"{missing} tensors of {self.prefix} were never written")
        entries = [(name.encode(), encode_entry(self._entries[name])) for name in self.order]
        self._index.append(
            build_table([(b"", encode_header(BundleHeader(metadata=self._metadata))), *entries])
        )
        self._data.sync()
        self._index.sync()
        try:
            # an old index must not point into the new data for even a moment
            index_path(self.prefix).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, index_path(self.prefix)) from error
        data = self._data.rename()
        try:
            files = [data, self._index.rename()]
        except BaseException:  # Ctrl+C too: data without an index is of no use to anybody
            data.unlink(missing_ok=True)
            raise
        check_or_remove(check, self.prefix, files)
        return files

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the temporary files, unless `finish` gave them their names."""
        self._stack.close()


def _is_variable_name(name: str) -> bool:
    """Whether the reader would take it back: not empty (the header's key), UTF-8, no control characters."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return bool(name) and not any(character < " " or character == "\x7f" for character in name)
