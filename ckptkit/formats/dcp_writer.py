"""Write a checkpoint of torch.distributed (DCP) without torch: a folder that its ``load`` opens.

Every tensor is one chunk, as a single rank without shards saves it: any number of ranks can load that, and
each takes the part it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.files import StagedFile, move, refuse_streams, sync_folder
from ckptkit.base.folders import StagedFolder, refuse_replacement
from ckptkit.base.tensors import Piece, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats.base import Check
from ckptkit.formats.dcp import ENDING, METADATA, MODULE, VERSION
from ckptkit.formats.sharded_writing import FinishedShard, Share, cut, holds_bytes
from ckptkit.formats.torch_reader import METADATA_RECORD
from ckptkit.formats.torch_writer import (
    checkpoint_pickle,
    global_opcodes,
    holds,
    integer_opcodes,
    integers_opcodes,
    text_opcodes,
    torch_shape,
)
from ckptkit.formats.writing import TensorWriter, metadata_json
from ckptkit.formats.zip import Member, ZipWriter

_ROOT = "archive"
_BATCH = 1000
_MAX_FILES = 500


@dataclass
class _Chunk:
    """One tensor's archive in a file."""

    file: int
    offset: int
    archive: ZipWriter
    data: Member


class DcpWriter(TensorWriter):
    """A DCP checkpoint being written; see `ckptkit.formats.base.Writer`.

    ``__0_0.distcp`` holds every tensor; with ``max_shard_size`` there are more such files.
    """

    most = 50_000

    def __init__(
        self,
        path: Path,
        specs: Iterable[TensorSpec],
        metadata: Mapping[str, str],
        *,
        force: bool = False,
        max_shard_size: int | None = None,
        share: Share | None = None,
    ) -> None:
        super().__init__(Path(path), specs, metadata)
        for spec in self.specs.values():
            if not holds(spec):
                raise ConversionError(f"{self.path}: {spec.name!r}: torch has no {spec.dtype}")
        self.refuse_excess(len(self.specs))
        shards = cut(([spec] for spec in self.specs.values()), max_shard_size)
        if len(shards) > _MAX_FILES:
            files = f"{counted(len(shards), 'file')} of at most {max_shard_size} bytes"
            raise UsageError(f"{self.path}: {files}, more than {_MAX_FILES}", hint="allow larger ones")
        self.shards, self._force, self._share = shards, force, share
        self.paths = [self.path / f"__0_{number}{ENDING}" for number in range(len(shards))]
        self._chunks: dict[str, _Chunk] = {}
        self._files: list[StagedFile] = []
        self._folder: StagedFolder | None = None
        if share is None:
            refuse_existing_folder(self.path, force=force)
            self._folder = StagedFolder(self.path, force=force)
        elif share.number is not None:
            self.order = [spec.name for spec in shards[share.number]]
            self._folder = StagedFolder(share.folder.with_name(f"{share.number}.dcp"))
        try:
            for number, shard in enumerate(shards):
                self._begin(number, shard)
        except BaseException:
            self.discard()
            raise

    def _begin(self, number: int, shard: Sequence[TensorSpec]) -> None:
        """Give every tensor of a file its place, also of one that another process writes."""
        file: StagedFile | None = None
        if self._folder is not None and (self._share is None or number == self._share.number):
            file = StagedFile(self._folder.path / self.paths[number].name, plain=True)
            self._files.append(file)
        offset = 0
        for spec in shard:
            archive = ZipWriter(file, offset)
            archive.add(f"{_ROOT}/data.pkl", checkpoint_pickle([spec], spec))
            archive.add(f"{_ROOT}/byteorder", b"little")
            data = archive.reserve(f"{_ROOT}/data/0", spec.nbytes)
            archive.add(f"{_ROOT}/version", b"3\n")
            self._chunks[spec.name] = _Chunk(number, offset, archive, data)
            offset += archive.nbytes

    def put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        """Write a tensor at its place."""
        chunk = self._chunks[spec.name]
        return chunk.archive.fill(chunk.data, pieces)

    def _commit(self, check: Check | None) -> list[Path]:
        """Give the files their names in the temporary folder, and then the folder its own."""
        assert self._folder is not None
        for name in self.order:
            self._chunks[name].archive.close()
        names = [file.commit().name for file in self._files]
        names += self._write_metadata(self._folder.path, [self.specs[name] for name in self.order])
        if check is not None:
            check(self._folder.path)
        if self._share is not None:
            shard = self._share.folder / names[0]
            move(self._folder.path / shard.name, shard)
            sync_folder(shard.parent)
            return [shard]
        folder = self._folder.commit()
        return [folder / name for name in names]

    def _write_metadata(self, folder: Path, specs: Iterable[TensorSpec]) -> list[str]:
        """Write what leads to these tensors, last ``.metadata``; returns the names of the files."""
        for name, content in self._led_by(specs).items():
            with StagedFile(folder / name, force=True, plain=True) as file:
                file.append(content)
                file.commit()
        return [METADATA_RECORD, METADATA]

    def _led_by(self, specs: Iterable[TensorSpec]) -> dict[str, bytes]:
        return {
            METADATA_RECORD: metadata_json(self.metadata),
            METADATA: b"".join(_metadata(specs, self._place)),
        }

    def gather(self, shards: Sequence[FinishedShard]) -> list[Path]:
        """Write what leads to all files into their folder, and give that its final name."""
        refuse_existing_folder(self.path, force=self._force)
        folder = shards[0].path.parent
        names = self._write_metadata(folder, self.specs.values())
        final = StagedFolder(self.path, force=self._force, filled=folder).commit()
        return [*self.paths, *(final / name for name in names)]

    def is_gathered(self) -> bool:
        """Whether what leads to the files is there, and leads to these."""
        wanted = self._led_by(self.specs.values())
        return all(holds_bytes(self.path / name, content) for name, content in wanted.items())

    def _place(self, spec: TensorSpec) -> tuple[str, int, int]:
        chunk = self._chunks[spec.name]
        return self.paths[chunk.file].name, chunk.offset, chunk.archive.nbytes

    def discard(self) -> None:
        """Remove the temporary folder; harmless after `finish`."""
        for file in self._files:
            file.discard()
        if self._folder is not None:
            self._folder.discard()


def _metadata(
    specs: Iterable[TensorSpec], place: Callable[[TensorSpec], tuple[str, int, int]]
) -> Iterator[bytes]:
    """The pickle ``.metadata``: what every tensor is, and the one chunk that it is in."""
    every = list(specs)
    yield b"\x80\x02" + _begun("Metadata") + b"}("
    yield text_opcodes("state_dict_metadata")
    yield from _table((text_opcodes(spec.name), _tensor(spec)) for spec in every)
    yield text_opcodes("planner_data")
    yield from _table((text_opcodes(spec.name), text_opcodes(spec.name) + b"\x85") for spec in every)
    yield text_opcodes("storage_data")
    yield from _table((_index(spec), _storage(*place(spec))) for spec in every)
    yield text_opcodes("storage_meta") + b"N"
    yield text_opcodes("version") + text_opcodes(VERSION)
    yield b"ub."


def _table(items: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    yield b"}"
    pairs = iter(items)
    while batch := list(islice(pairs, _BATCH)):
        yield b"(" + b"".join(key + value for key, value in batch) + b"u"


def _begun(kind: str, module: str = f"{MODULE}.metadata") -> bytes:
    """An object of a class, made without arguments."""
    return global_opcodes(module, kind) + b")\x81"


def _built(kind: str, module: str = f"{MODULE}.metadata", **attributes: bytes) -> bytes:
    state = b"".join(text_opcodes(name) + value for name, value in attributes.items())
    return _begun(kind, module) + b"}(" + state + b"ub"


def _size(shape: tuple[int, ...]) -> bytes:
    return global_opcodes("torch", "Size") + integers_opcodes(shape) + b"\x85R"


def _tensor(spec: TensorSpec) -> bytes:
    """Properties are (dtype, layout, requires_grad, memory format, pin_memory); 0 means contiguous."""
    shape = torch_shape(spec)
    layout = global_opcodes("torch.serialization", "_get_layout") + text_opcodes("torch.strided") + b"\x85R"
    encoding = global_opcodes(f"{MODULE}.metadata", "_MEM_FORMAT_ENCODING") + integer_opcodes(0) + b"\x85R"
    dtype = global_opcodes("torch", str(spec.dtype.torch))
    properties = _begun("TensorProperties") + b"(" + dtype + layout + b"\x89" + encoding + b"\x89tb"
    box = _built("ChunkStorageMetadata", offsets=_size((0,) * len(shape)), sizes=_size(shape))
    return _built("TensorStorageMetadata", properties=properties, size=_size(shape), chunks=b"]" + box + b"a")


def _index(spec: TensorSpec) -> bytes:
    offset = _size((0,) * len(torch_shape(spec)))
    return _built("MetadataIndex", fqn=text_opcodes(spec.name), offset=offset, index=integer_opcodes(0))


def _storage(file: str, offset: int, nbytes: int) -> bytes:
    return _built(
        "_StorageInfo",
        f"{MODULE}.filesystem",
        relative_path=text_opcodes(file),
        offset=integer_opcodes(offset),
        length=integer_opcodes(nbytes),
    )


def refuse_existing_folder(path: Path, *, force: bool) -> None:
    """Refuse, before any work, to write where something else is, or a checkpoint without ``force``."""
    if not path.is_dir():
        refuse_streams(path)
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    own = {name for name in names if name.endswith(ENDING) or name in (METADATA, METADATA_RECORD)}
    refuse_replacement(path, force=force, owned=own if METADATA in names else ())
