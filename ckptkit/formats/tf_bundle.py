"""TensorFlow V2 checkpoints (``prefix.index`` and ``prefix.data-NNNNN-of-MMMMM``) without TensorFlow.

Read: plain names, object-based checkpoints and SavedModels, several shards, partitioned variables, from a
prefix, a folder or a tar archive. Write: plain names, one shard. Source of the format:
tensorflow/core/util/tensor_bundle/.
"""

from __future__ import annotations

import contextlib
import glob
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath

from ckptkit.base.budget import Budget
from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, UsageError, listed
from ckptkit.base.files import (
    TEMPORARY,
    StagedFile,
    make_folders,
    new_token,
    refuse_streams,
    sync_checked,
    translated,
)
from ckptkit.base.tensors import Array, DType, Piece, RawTensor, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats import foreign
from ckptkit.formats.base import Check
from ckptkit.formats.far_path import as_path
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.protobuf_wire import WireError
from ckptkit.formats.readers import MappedReader, refuse_odd_bools, whole_bytes
from ckptkit.formats.tar import iter_safe_members
from ckptkit.formats.tf_index import (
    BundleEntry,
    BundleHeader,
    Part,
    StoredTensor,
    build_table,
    encode_entry,
    encode_header,
    index_path,
    load_index,
    mask,
    shard_path,
)
from ckptkit.formats.tf_object_graph import (
    GRAPH_KEY,
    MAX_GRAPH_BYTES,
    Names,
    decode_string_scalar,
    string_checksum,
    variable_names,
)
from ckptkit.formats.writing import TensorWriter, put_at, put_in_place, refuse_existing_checkpoint

_SHARD_NAME = re.compile(r"\.data-\d{5}-of-\d{5}$")
_STATE_PATH = re.compile(
    r'^[ \t]*model_checkpoint_path[ \t]*:[ \t]*"((?:[^"\\\n]|\\.){0,8192})"', re.MULTILINE
)
_STATE_FILE = "checkpoint"
_MAX_NAME_BYTES = 255
_STATE_BYTES = 1 << 20
_SAVED_MODEL = Path("variables", "variables")
_FILE_STEPS = 1_500
"""What making a file, and looking at it, costs of a budget."""
_COPY_BYTES = 1 << 20
_SHOWN = 5
_DEPTHS = ("*/", "*/*/", "*/*/*/")  # how deep in a folder a checkpoint is looked for


def locate(path: Path) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """The prefix that ``path`` means, and the temporary folder that an archive's members were put in.

    ``path`` is a prefix; its ``.index``, ``.meta`` or one of its data files; a folder (its ``checkpoint``
    file, its only prefix, or a SavedModel's variables); or a tar archive of any of these.
    """
    if path.name and index_path(path).is_file():
        return path, None
    if path.is_dir():
        return _in_folder(path), None
    if not path.exists():
        raise NotFoundError(f"{path}: no such file, folder or checkpoint prefix")
    if path.name == _STATE_FILE:
        return _in_folder(path.parent), None
    prefix = prefix_of(path)
    if prefix is not None:
        if not index_path(prefix).is_file():
            raise NotFoundError(f"{index_path(prefix)}: no such file", hint="a checkpoint needs its .index")
        return prefix, None
    if not path.is_file():
        raise FormatError(path, "neither a file nor a folder")
    return _in_archive(path)


def prefix_of(path: Path) -> Path | None:
    """The prefix that a file of a checkpoint is called after; None for other files.

    Examples
    --------
    >>> [str(prefix_of(Path(f"m.ckpt{end}"))) for end in (".meta", ".data-00000-of-00001", ".pth")]
    ['m.ckpt', 'm.ckpt', 'None']
    """
    name = _SHARD_NAME.sub("", path.name.removesuffix(".index").removesuffix(".meta"))
    return path.with_name(name) if name and name != path.name else None


def prefixes_in(folder: Path) -> list[Path]:
    """The checkpoints at the top of a folder: the one its ``checkpoint`` file names, else all there are."""
    found = _from_state_files([folder / _STATE_FILE]) or _prefixes(folder, "*.index")
    if index_path(folder / _SAVED_MODEL).is_file() and len(found) != 1:
        return [folder / _SAVED_MODEL]
    return found


def _in_archive(path: Path) -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    folder = tempfile.TemporaryDirectory(prefix="ckptkit-tf-")
    try:
        names = _copy_members(path, Path(folder.name))
        return _in_folder(Path(folder.name), archive=path, names=names), folder
    except BaseException:  # Ctrl+C too: nothing may stay in the temporary folder
        folder.cleanup()
        raise


def _copy_members(archive: Path, folder: Path) -> list[str]:
    """Copy an archive's checkpoint files, and nothing else, into a folder; the names of all members."""
    names = []
    budget = Budget(archive.stat().st_size, partial(FormatError, archive))
    for member, stream in iter_safe_members(archive):
        name = PurePosixPath(member.name).name
        if stream is None:
            continue
        names.append(member.name)
        if not (name == _STATE_FILE or _is_index(name) or _SHARD_NAME.search(name)):
            continue
        budget.spend(steps=_FILE_STEPS)
        target = folder.joinpath(*PurePosixPath(member.name).parts)
        with translated(target):
            make_folders(target.parent)
            with target.open("xb") as file:
                shutil.copyfileobj(stream, file, _COPY_BYTES)
    return names


def _in_folder(folder: Path, *, archive: Path | None = None, names: Sequence[str] = ()) -> Path:
    """The folder's checkpoint; ``archive`` is where it came from, if any, with members of those names."""
    found = prefixes_in(folder)
    if not found:
        below = [state for depth in _DEPTHS for state in sorted(folder.glob(depth + _STATE_FILE))]
        found = _from_state_files(below)
        found = found if len(found) == 1 else _prefixes(folder, *(depth + "*.index" for depth in _DEPTHS))
    if len(found) == 1:
        return found[0]
    if not found:
        if archive is not None:
            raise foreign.of_archive(archive, names).error(archive)
        raise FormatError(folder, "holds no TensorFlow checkpoint (no .index file)")
    choices = (prefix.relative_to(folder).as_posix() for prefix in found)
    holds = f"holds {counted(len(found), 'checkpoint')}: {listed(choices, _SHOWN)}"
    if archive is not None:
        raise FormatError(archive, holds, hint=foreign.of_archive(archive, names).hint)
    raise UsageError(f"{folder} {holds}", hint="give the prefix of one")


def _prefixes(folder: Path, *patterns: str) -> list[Path]:
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    found = (path for path in files if _is_index(path.name) and path.is_file())
    return sorted(path.with_name(path.name.removesuffix(".index")) for path in found)


def _is_index(name: str) -> bool:
    """Whether a file is an index; macOS puts ``._x`` beside each ``x`` in archives, which are none."""
    return name.endswith(".index") and len(name) > len(".index") and not name.startswith(("._", TEMPORARY))


def _from_state_files(states: list[Path]) -> list[Path]:
    """The prefixes that ``checkpoint`` text files name, as far as they are in the same folder.

    TensorFlow writes the absolute path on the machine that trained; only its last part means something here.
    """
    found = set()
    for state in states:
        prefix = named_by(state) if state.is_file() else None
        if prefix is not None and index_path(prefix).is_file():
            found.add(prefix)
    return sorted(found)


def named_by(state: Path) -> Path | None:
    """What a ``checkpoint`` text file names, in its own folder, whether it is there or not."""
    with translated(state), state.open("rb") as file:
        match = _STATE_PATH.search(file.read(_STATE_BYTES).decode("utf-8", "replace"))
    name = PurePosixPath(re.sub(r"\\(.)", r"\1", match[1]).replace("\\", "/")).name if match else ""
    # asking a file system for a name that is too long is an error
    may_exist = name not in ("", "..") and len(f"{name}.index".encode()) <= _MAX_NAME_BYTES
    return state.parent / name if may_exist else None


# ----------------------------------------------------------------------------------------------------
# Reading.


_KEEP_BYTES = 16 << 20
"""A tensor up to this size stays resident after its checksum: whoever checks it is about to read it."""


class TfBundleReader(MappedReader):
    """An open TensorFlow V2 checkpoint, by variable name in the order of the data files.

    ``path`` is what `locate` takes; ``verify`` compares a tensor's checksum before it is first handed out.
    """

    format = "tf"

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        self.path = as_path(path)
        self._verify = verify
        self._files: list[MappedFile] = []
        self._shards: dict[int, MappedFile] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        with translated(self.path):
            self.prefix, self._temporary = locate(self.path)
        try:
            with self._named():
                self._load(Budget(self._size(), lambda reason: FormatError(index_path(self.prefix), reason)))
        except BaseException:  # Ctrl+C too: the temporary folder must go
            self.close()
            raise

    def _size(self) -> int:
        """Bytes of the checkpoint as it came: of the archive, or of the files of its prefix."""
        if self._temporary is not None:
            return self.path.stat().st_size
        pattern = f"{glob.escape(self.prefix.name)}.data-*"
        with translated(self.prefix):
            files = [index_path(self.prefix), *self.prefix.parent.glob(pattern)]
            return sum(file.stat().st_size for file in files if file.is_file())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the archive, and not its temporary folder, in errors about its files."""
        try:
            yield
        except FormatError as error:
            if self._temporary is None:
                raise
            inside = Path(error.path).name
            raise FormatError(self.path, f"{inside} in it: {error.reason}", hint=error.hint) from error

    def _load(self, budget: Budget) -> None:
        index = load_index(self.prefix, budget)
        self._num_shards = index.header.num_shards
        self.metadata = dict(index.header.metadata)
        readable = {key: tensor for key, tensor in index.tensors.items() if tensor.dtype is not None}
        names = self._names(index.tensors, list(readable), budget)
        self._tensors: dict[str, StoredTensor] = {}
        specs: dict[str, TensorSpec] = {}
        unlisted = "parts of a variable that the index does not list"
        left_out = {name: unlisted for name in index.unused_parts if name not in index.tensors}
        for key, tensor in sorted(readable.items(), key=lambda item: item[1].place):
            if tensor.dtype is None or key in names.twins:
                continue
            name = names.by_key[key]
            if tensor.gap:
                left_out[name] = tensor.gap
            elif tensor.dtype.itemsize or len(tensor.parts) == 1:
                stored = None if tensor.dtype.itemsize else tensor.parts[0].size
                specs[name] = TensorSpec(name, tensor.dtype, tensor.shape, stored)
                self._tensors[name] = tensor
            else:
                left_out[name] = (
                    f"in {counted(len(tensor.parts), 'part')}, of a type of unknown size ({tensor.dtype})"
                )
        self.specs = specs
        self.left_out = left_out
        self.keys: Mapping[str, str] = {name: tensor.key for name, tensor in self._tensors.items()}
        self.notes = [*index.notes(), *names.notes()]
        self._also = index.others(but=GRAPH_KEY)
        self.optimizer = names.optimizer
        self.namesakes = names.namesakes

    def _names(self, tensors: Mapping[str, StoredTensor], keys: list[str], budget: Budget) -> Names:
        graph = tensors.get(GRAPH_KEY)
        if graph is None:
            return Names({key: key for key in keys})
        path = index_path(self.prefix)
        if graph.type_name != "strings" or graph.shape or graph.gap or graph.parts[0].size > MAX_GRAPH_BYTES:
            raise FormatError(path, f"{GRAPH_KEY} is not one string of at most {MAX_GRAPH_BYTES} bytes")
        part = graph.parts[0]
        try:
            text = decode_string_scalar(bytes(self._bytes(part)))
            if part.crc32c is not None and string_checksum(text) != part.crc32c:
                raise WireError("its checksum (crc32c) differs")
            return variable_names(keys, text, budget, lambda key: tensors[key].fingerprint)
        except WireError as error:
            raise FormatError(path, f"damaged object graph {GRAPH_KEY}: {error}") from error

    def _hold(self, name: str) -> None:
        self._require(name)
        if self._verify and name not in self._held:
            self.check(name)

    def _read(self, name: str) -> Array:
        """A view of the mapped file, or a copy for a partitioned variable."""
        tensor = self._tensors[name]
        spec = self.specs[name]
        dtype = whole_bytes(self.path, spec)
        if len(tensor.parts) == 1:
            return self._view(tensor.parts[0], dtype, spec.shape)
        import numpy

        whole = numpy.empty(spec.shape, dtype.numpy)
        for part in tensor.parts:
            box = tuple(
                slice(begin, begin + size) for begin, size in zip(part.start, part.shape, strict=True)
            )
            whole[box] = self._view(part, dtype, part.shape)
        whole.flags.writeable = False
        return whole

    def _raw(self, name: str) -> RawTensor | None:
        """None for a partitioned variable."""
        tensor = self._tensors[name]
        if len(tensor.parts) != 1:
            return None
        return RawTensor(tensor.shape, self._bytes(tensor.parts[0]))

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare a tensor with its stored crc32c: True when it holds, False when none is stored."""
        self._require(name)
        tensor = self._tensors[name]
        for part in tensor.parts:
            whole = known if len(tensor.parts) == 1 else None
            found = self._crc32c(part) if whole is None else whole
            if part.crc32c is not None and mask(found) != part.crc32c:
                raise FormatError(
                    self._shard_path(part),
                    f"tensor {name!r}: checksum (crc32c) differs: damaged",
                    offset=part.offset,
                    hint="fetch it again",
                )
            if self.specs[name].dtype.kind == "bool":
                refuse_odd_bools(self.path, name, RawTensor(part.shape, self._bytes(part)))
        self._held.add(name)
        return all(part.crc32c is not None for part in tensor.parts)

    def release(self, name: str) -> None:
        """Give a tensor's pages back; views stay valid, and read from the file again when touched."""
        self._require(name)
        for part in self._tensors[name].parts:
            self._release(part, part.offset, part.size)

    def close(self) -> None:
        """Unmap, and remove what was unpacked; views handed out must not be used after."""
        super().close()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _view(self, part: Part, dtype: DType, shape: tuple[int, ...]) -> Array:
        if part.size == 0:
            import numpy

            empty = numpy.empty(shape, dtype.numpy)
            empty.flags.writeable = False
            return empty
        return self._shard(part).view(part.offset, dtype, shape)

    def _bytes(self, part: Part) -> memoryview:
        return self._shard(part).raw(part.offset, part.size) if part.size else memoryview(b"")

    def _crc32c(self, part: Part) -> int:
        if not part.size:
            return 0
        keep = part.size <= _KEEP_BYTES
        return self._shard(part).checksum(crc32c, part.offset, part.size, keep=keep)

    def _release(self, part: Part, offset: int, size: int) -> None:
        if size:
            self._shard(part).release_around(offset, size)

    def _shard_path(self, part: Part) -> Path:
        return shard_path(self.prefix, part.shard, self._num_shards)

    def _shard(self, part: Part) -> MappedFile:
        """The data file, mapped on first use: there may be more of them than one process may open."""
        if part.shard not in self._shards:
            file = MappedFile(self._shard_path(part))
            self._files.append(file)
            self._shards[part.shard] = file
        file = self._shards[part.shard]
        if part.offset + part.size > file.size:
            raise FormatError(file.path, "became shorter while it was open")
        return file


# ----------------------------------------------------------------------------------------------------
# Writing: plain names, one data file, byte for byte as TensorFlow's Saver would.


class TfBundleWriter(TensorWriter):
    """Writes a prefix in the order of the names' UTF-8 bytes, as TensorFlow does."""

    most = 220_000

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> None:
        path = Path(path)
        self.prefix = path.with_name(path.name.removesuffix(".index") or path.name)
        super().__init__(self.prefix, map(self._holdable, specs), metadata)
        self.refuse_excess(len(self.specs))
        self.order = sorted(self.specs, key=lambda name: name.encode())
        sizes = [self.specs[name].nbytes for name in self.order]
        self._offsets = dict(zip(self.order, accumulate(sizes, initial=0), strict=False))
        self._checksums: dict[str, int] = {}
        refuse_existing_checkpoint(self.prefix, force=force)
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
            raise ConversionError(f"{self.prefix}: {spec.name!r} cannot be the name of a TensorFlow variable")
        if spec.dtype.tf is None:
            raise ConversionError(f"{self.prefix}: {spec.name!r}: TensorFlow has no {spec.dtype}")
        return spec

    def put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        """Write a tensor at its place."""
        crc = put_at(self._data, pieces, self._offsets[spec.name])
        self._checksums[spec.name] = crc
        return crc

    def _entry(self, spec: TensorSpec) -> BundleEntry:
        crc = mask(self._checksums[spec.name])
        return BundleEntry(spec.dtype.tf or 0, spec.shape, 0, self._offsets[spec.name], spec.nbytes, crc)

    def _commit(self, check: Check | None) -> list[Path]:
        """Rename the index last: a checkpoint exists if and only if its index does."""
        entries = [(name.encode(), encode_entry(self._entry(self.specs[name]))) for name in self.order]
        self._index.append(
            build_table([(b"", encode_header(BundleHeader(metadata=self.metadata))), *entries])
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
