"""Write a TensorFlow V2 checkpoint: plain names, one data file, byte for byte as TensorFlow's Saver would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

from ckptkit.base.errors import ConversionError
from ckptkit.base.files import StagedFile, new_token, refuse_streams, sync_checked
from ckptkit.base.tensors import Piece, TensorSpec
from ckptkit.formats.base import Check
from ckptkit.formats.leveldb_table import build_table, mask
from ckptkit.formats.replacing import put_in_place, refuse_standing
from ckptkit.formats.tensor_writer import PlacedWriter, put_at
from ckptkit.formats.tf_bundle_index import index_path, shard_path
from ckptkit.formats.tf_bundle_proto import BundleEntry, BundleHeader, encode_entry, encode_header


class TfBundleWriter(PlacedWriter):
    """A TensorFlow checkpoint being written; see `ckptkit.formats.base.Writer`."""

    most = 220_000

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> None:
        path = Path(path)
        self.prefix = path.with_name(path.name.removesuffix(".index") or path.name)
        super().__init__(self.prefix, map(self._holdable, specs), metadata)
        self.order = sorted(self._specs, key=lambda name: name.encode())
        sizes = [self._specs[name].nbytes for name in self.order]
        self._offsets = dict(zip(self.order, accumulate(sizes, initial=0), strict=False))
        self._checksums: dict[str, int] = {}
        refuse_standing(self.prefix, force=force)
        refuse_streams(self.prefix)
        with contextlib.ExitStack() as stack:
            token = new_token()
            self._index, self._data = (
                stack.enter_context(
                    StagedFile(
                        path, force=force, ending=path.name[len(self.prefix.name) :], token=token, plain=True
                    )
                )
                for path in (index_path(self.prefix), shard_path(self.prefix, 0, 1))
            )
            self._stack = stack.pop_all()

    def _holdable(self, spec: TensorSpec) -> TensorSpec:
        if not _is_variable_name(spec.name):
            raise ConversionError(f"{self.prefix}: {spec.name!r} is no name for a TensorFlow variable")
        if spec.dtype.tf is None:
            raise ConversionError(f"{self.prefix}: {spec.name!r}: TensorFlow has no {spec.dtype}")
        return spec

    def _put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        crc = put_at(self._data, pieces, self._offsets[spec.name])
        self._checksums[spec.name] = crc
        return crc

    def _entry(self, spec: TensorSpec) -> BundleEntry:
        crc = mask(self._checksums[spec.name])
        return BundleEntry(spec.dtype.tf or 0, spec.shape, 0, self._offsets[spec.name], spec.nbytes, crc)

    def _commit(self, check: Check | None) -> list[Path]:
        """Rename the index last: a checkpoint exists if and only if its index does."""
        entries = [(name.encode(), encode_entry(self._entry(self._specs[name]))) for name in self.order]
        self._index.append(
            build_table([(b"", encode_header(BundleHeader(metadata=self._metadata))), *entries])
        )
        temporary = self._index.temporary
        sync_checked(
            [self._data, self._index], check, temporary.with_name(temporary.name.removesuffix(".index"))
        )
        return put_in_place([self._data, self._index], self.prefix)

    def discard(self) -> None:
        """Remove the temporary files; harmless after `finish`."""
        self._stack.close()


def _is_variable_name(name: str) -> bool:
    """Whether the reader would take it back: not empty (the header's key), UTF-8, no control characters."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return bool(name) and not any(character < " " or character == "\x7f" for character in name)
