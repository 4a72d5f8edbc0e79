"""What a container format is: a `Format`, which opens a `Reader` of named tensors and starts a `Writer`.

The formats of other packages are found through the entry points ``ckptkit.formats``, each of which names an
instance of `Format`; a reader is a subclass of `Reader`, and a writer whatever has the methods of `Writer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

from ckptkit.base.errors import UsageError
from ckptkit.base.files import storage_error
from ckptkit.base.tensors import Array, RawTensor, TensorSpec
from ckptkit.formats.far_path import FarPath

if TYPE_CHECKING:
    from typing_extensions import Self


Copy = Literal["ema", "raw"]
"""A copy of the weights: their moving averages, or the weights being trained."""

Weights = Literal["auto", "ema", "raw"]
"""Which copy is wanted; ``auto`` leaves the choice to what is there."""

AVERAGING_COUNTERS = ("n_averaged", "steps")
"""What averaged models of torch.optim.swa_utils and of mmengine count with, beside the names ``module.…``."""

Check = Callable[[Path], None]
"""Looks at a written checkpoint and raises when it is not what it should be."""

HEAD_BYTES = 4096
HDF5_MARK = b"\x89HDF\r\n\x1a\n"
TABLE_MARK = (0xDB4775248B80FB57).to_bytes(8, "little")
"""What ends the index of a TensorFlow checkpoint, and a checkpoint of the first format."""
_LEGACY_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""The number that begins the pickle stream of torch.save before its zip archives."""
PACKERS = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}
"""How compressed files begin."""
_BOM = b"\xef\xbb\xbf"
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Sample:
    """A file that may be a checkpoint: its path, and its bytes on demand."""

    path: Path
    given: bytes | None = None  # its first bytes, where they are at hand and the file is not

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a folder, which has no bytes."""
        return self.given is None and self.path.is_dir()

    @property
    def is_far(self) -> bool:
        """Whether it is on a server, where each place that is looked at costs a request."""
        return isinstance(self.path, FarPath)

    @cached_property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.given) if self.given is not None else self.path.stat().st_size

    @cached_property
    def head(self) -> bytes:
        """Its first bytes."""
        return self.given[:HEAD_BYTES] if self.given is not None else self.read(0, HEAD_BYTES)

    @cached_property
    def tail(self) -> bytes:
        """Its last eight bytes."""
        return self.read(max(0, self.size - 8), 8)

    @cached_property
    def text(self) -> bytes:
        """The head as lower-case text, without what may precede a document."""
        return self.head.removeprefix(_BOM).lstrip().lower()

    @cached_property
    def is_zip(self) -> bool:
        """Whether it begins as a zip archive."""
        return self.head.startswith((b"PK\x03\x04", b"PK\x05\x06"))

    @cached_property
    def is_tar(self) -> bool:
        """Whether it begins as a tar archive that is not packed."""
        return self.head[257:262] == b"ustar"

    @cached_property
    def is_packed(self) -> bool:
        """Whether it begins as a compressed file does, an archive or not."""
        return self.head.startswith(tuple(PACKERS.values()))

    @cached_property
    def is_hdf5(self) -> bool:
        """Whether it begins as an HDF5 file."""
        return self.head.startswith(HDF5_MARK)

    @cached_property
    def is_table(self) -> bool:
        """Whether it ends as a sorted table, such as the index of a TensorFlow checkpoint."""
        return self.tail == TABLE_MARK

    @cached_property
    def is_pickle(self) -> bool:
        """Whether it begins as a pickle of protocol 2 or later, and not the packed block of a table."""
        return self.head[:1] == b"\x80" and not self.is_table

    @cached_property
    def is_torch_pickle(self) -> bool:
        """Whether it is the stream of pickles that torch.save wrote before its zip archives."""
        return self.is_pickle and _LEGACY_TORCH in self.head[:64]

    @cached_property
    def zip_names(self) -> Sequence[str]:
        """Names in a zip archive, none in another file; the first alone where it says what the archive is.

        Raises
        ------
        FormatError
            The archive is damaged.
        """
        if not self.is_zip:
            return ()
        length = int.from_bytes(self.head[26:28], "little")
        first = self.head[30 : 30 + length].decode("utf-8", "replace")
        if first.endswith(("/data.pkl", ".npy")):
            return (first,)
        from ckptkit.formats.mapped_file import MappedFile
        from ckptkit.formats.zip import read_directory

        file = MappedFile(self.path)
        try:
            return tuple(read_directory(file).entries)
        finally:
            file.close()

    def read(self, offset: int, count: int) -> bytes:
        """Some of its bytes; none of a folder."""
        if self.given is not None:
            return self.given[offset : offset + count]
        if self.is_folder:
            return b""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(count)
        except OSError as error:
            raise storage_error(error, self.path) from error


@dataclass(frozen=True)
class Opening:
    """How a checkpoint is to be opened; what a format has no use for it leaves alone."""

    state_dict: str | None = None  # which one of several
    weights: Weights | None = None  # which copy, where each has a state dict of its own
    as_saved: bool = False  # leave prefixes of wrappers on the names
    is_shard: bool = False  # it is one of several files, whose index is being read


class Format(ABC):
    r"""A container of named tensors: all that ckptkit knows of it.

    Attributes
    ----------
    name : str
        What users, registries and results call it, such as ``npz``; also the name of its entry point.
    title : str
        What sentences call it, or the framework it belongs to: ``Keras``.
    endings : sequence of str
        What the names of its files end with, each with its dot, the usual one first.
    also_endings : sequence of str
        Endings of another format that its files have too, where the user names the format.
    aliases : sequence of str
        Other words that ``--to`` takes for it.
    layout : str
        The layout of names and axes that a conversion to it has where the family says no other.
    any_names : bool
        Whether it is a mere container: a registry may publish any layout in it.
    only_usual_layout : bool
        Whether its own framework loads no other layout than the usual one.
    checksum : str
        What the checksums are called that it stores of its tensors.
    read_only : str
        Why it has no writer; empty where it has one.
    one_file : bool
        Whether a checkpoint is the one file at its path.
    folder : bool
        Whether a checkpoint that is written is a folder.
    shards : bool
        Whether its writer takes ``max_shard_size`` (bytes) and then writes several files and their index.
    shares : bool
        Whether several processes may write the shards: its writer takes ``share`` too, see
        `formats.sharded_writing.Share`.
    shares_tensors : bool
        Whether its writer takes ``shared``, a mapping of names to those of the tensors that they are too.
    wrapper_prefix : str
        What its framework's wrappers, such as data parallel models, put before every name; empty for none.
    names_rule : str
        What its own framework wants of names, for the refusal of those that `unloadable` gives.

    Examples
    --------
    A format of one tensor a file, little-endian float32 after a mark:

    >>> import numpy, tempfile
    >>> from ckptkit.base.tensors import DTYPES
    >>> class Column(Format):
    ...     name, title, endings = "column", "Column", (".column",)
    ...     read_only = "it is an example"
    ...
    ...     def matches(self, sample):
    ...         return sample.head.startswith(b"COLUMN")
    ...
    ...     def open(self, path, how):
    ...         return ColumnReader(path)
    >>> class ColumnReader(Reader):
    ...     format = "column"
    ...
    ...     def __init__(self, path):
    ...         self.path = path
    ...         self._values = numpy.frombuffer(path.read_bytes()[6:], "<f4")
    ...         self.specs = {"x": TensorSpec("x", DTYPES["float32"], self._values.shape)}
    ...
    ...     def read(self, name):
    ...         return self._values
    >>> path = Path(tempfile.mkdtemp(), "a.column")
    >>> path.write_bytes(b"COLUMN" + numpy.float32([1, 2]).tobytes())
    14
    >>> column = Column()
    >>> column.matches(Sample(path))
    True
    >>> with column.open(path, Opening()) as reader:
    ...     reader.specs["x"].shape, reader.read("x").tolist()
    ((2,), [1.0, 2.0])
    >>> column.writer(path, reader.specs.values(), {})
    Traceback (most recent call last):
    ...
    ckptkit.base.errors.UsageError: column files are read, not written: it is an example
    """

    name: str
    title: str
    endings: Sequence[str]
    also_endings: Sequence[str] = ()
    aliases: Sequence[str] = ()
    layout: str = "torch"
    any_names: bool = False
    only_usual_layout: bool = False
    checksum: str = "stored checksum"
    read_only: str = ""
    one_file: bool = True
    folder: bool = False
    shards: bool = False
    shares: bool = False
    shares_tensors: bool = False
    wrapper_prefix: str = ""
    names_rule: str = ""

    @abstractmethod
    def matches(self, sample: Sample) -> bool:
        """Whether a file or folder is of this format, by its content.

        Asked of every file that no format before this one knows, so a few reads must do; what is damaged
        further on is for `open` to say. The path exists.
        """

    @abstractmethod
    def open(self, path: Path, how: Opening) -> Reader:
        """Open a checkpoint that matches.

        Raises
        ------
        FormatError
            Damaged or hostile: with the reason, and the offset where there is one.
        """

    def holds(self, spec: TensorSpec) -> bool:
        """Whether a file can hold a tensor of this element type and shape."""
        return not spec.dtype.is_opaque

    def unloadable(self, names: Iterable[str]) -> Sequence[str]:
        """Those names that a file can hold and the format's own framework could not load."""
        return ()

    def beside(self, path: Path) -> Iterable[Path]:
        """Files beside ``path`` that belong to a checkpoint there, as far as they exist."""
        return ()

    def refuse_existing(self, path: Path, *, force: bool) -> None:
        """Refuse, before any work, to write where something is already; UsageError."""
        from ckptkit.formats.writing import refuse_existing_checkpoint

        refuse_existing_checkpoint(path, force=force)

    def writer(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> Writer:
        """Start a checkpoint at ``path``, which may be there already with ``force`` alone.

        Raises
        ------
        UsageError
            Something is there; or the format has no writer.
        ConversionError
            It cannot hold one of the tensors.
        """
        raise UsageError(f"{self.name} files are read, not written: {self.read_only}")


class Reader(ABC):
    """An open checkpoint: names and specs at once, bytes on demand.

    A subclass gives `path`, `format`, `specs` and `read`; all else has a default that says "nothing of that".

    Attributes
    ----------
    path : Path
        The file (or prefix, or folder) as the user named it.
    format : str
        `Format.name`.
    specs : Mapping of str to TensorSpec
        Every tensor that can be carried, in file order; those of an opaque type too.
    metadata : Mapping of str to str
        What the container says about itself.
    notes : Sequence of str
        What is unusual, one plain sentence each.
    left_out : Mapping of str to str
        Tensors that cannot be carried at all, and why not. Nobody may pass over them in silence.
    state_dicts : tuple of str
        The state dicts of a file that can hold several.
    state_dict : str or None
        The one that is read.
    weights : "ema", "raw" or None
        Which copy is read, where the file has both in state dicts of their own.
    optimizer : Collection of str
        Tensors that belong to an optimizer, as far as the file itself says so.
    namesakes : Mapping of str to str
        Tensors listed under another name than their own, because another one has it too, and that name.
    """

    path: Path
    format: str
    specs: Mapping[str, TensorSpec]
    metadata: Mapping[str, str] = _NOTHING
    notes: Sequence[str] = ()
    left_out: Mapping[str, str] = _NOTHING
    state_dicts: tuple[str, ...] = ()
    state_dict: str | None = None
    weights: Copy | None = None
    optimizer: Collection[str] = frozenset()
    namesakes: Mapping[str, str] = _NOTHING

    @property
    def extras(self) -> Mapping[str, str]:
        """What the file holds besides the model's tensors, in detail: optimizer state, epoch, texts."""
        return _NOTHING

    @property
    def also(self) -> Mapping[str, str]:
        """The same, in a few words for each."""
        return self.extras

    @property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one, and which that is."""
        return _NOTHING

    @property
    def called(self) -> Mapping[str, str]:
        """Tensors with the names that the model's author gave, where the file's own do not tell them."""
        return _NOTHING

    @property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes touch those of one before them."""
        return ()

    @abstractmethod
    def read(self, name: str) -> Array:
        """Read-only view of one tensor, zero-copy from a memory map where its bytes are contiguous.

        A checksum that the container keeps of them has been compared, once. Elements of an opaque type come
        as ml_dtypes has them, else as numpy void; FormatError where they are not whole bytes.
        """

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of one tensor without numpy; None where they are not in C order in one piece.

        Checked as by `read`. Never None for elements that are not whole bytes.
        """
        return None

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare one tensor with the checksum the container stores for it.

        ``known`` is the crc32c of its bytes, where somebody has walked over them already: a container that
        stores a crc32c need not do it again, others have no use for it. Returns True when it matches, False
        when the container stores none; a difference raises FormatError.
        """
        return False

    def check_rest(self) -> None:  # noqa: B027
        """Check what else the container keeps checksums for; FormatError where it is damaged."""

    def release(self, name: str) -> None:  # noqa: B027
        """Say that a tensor's pages are not needed for now (keeps resident memory bounded)."""

    def close(self) -> None:  # noqa: B027
        """Unmap and close; views handed out must not be used after."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bytes_of(reader: Reader, name: str) -> RawTensor:
    """The bytes of one tensor in C order: those of the file, or a copy where the file has another order."""
    raw = reader.raw(name)
    if raw is not None:
        return raw
    import numpy

    array = reader.read(name)
    if array.dtype.names:  # numpy would copy a record's fields, and not what is between them
        array = array.view(f"V{array.itemsize}")
    copied: Array = numpy.array(array, order="C").reshape(-1).view(numpy.uint8)
    return RawTensor(reader.specs[name].shape, copied.data)


class Writer(Protocol):
    """A checkpoint being written: specs first, then tensors in the writer's own order, then `finish`.

    Until `finish` returns, nothing is there under the final name. Leaving the ``with`` block by an exception
    (Ctrl+C too) or without `finish` removes every temporary file.
    """

    order: Sequence[str]
    """The order in which `write` wants the tensors."""

    concurrent: bool
    """Whether `write` may be called in any order and from several threads at once."""

    def write(self, name: str, array: Array | RawTensor) -> int:
        """Write one tensor (any strides; cast to the spec's dtype). Returns crc32c of the bytes written."""
        ...

    def finish(self, check: Check | None = None, late: Mapping[str, str] | None = None) -> list[Path]:
        """Sync, check and rename; returns the files that now exist.

        ``late`` replaces values of the metadata that were not known at the start by others of their length.
        ``check`` is given a path under which the whole result can be opened: its temporary name where the
        container is one file, else the final one. What it raises discards the result.
        """
        ...

    def __enter__(self) -> Self:
        """Return self."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Discard everything unless `finish` has been called."""
        ...
