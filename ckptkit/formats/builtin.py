"""The formats of ckptkit itself, and the way to those that other packages add.

A format is one class here, which knows everything that others ask of it, and a file or two beside this one
that are imported when a checkpoint is opened or written. A file is tried with them in their order.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptkit.base import plugins
from ckptkit.base.errors import FormatError, UsageError
from ckptkit.base.tensors import TensorSpec
from ckptkit.formats.base import Format, Opening, Reader, Sample, Writer

_TORCH_TAR = {"pickle", "storages", "tensors"}
HDF5 = b"\x89HDF\r\n\x1a\n"
LEGACY_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""The number that begins the pickle stream of torch.save before its zip archives."""
TABLE_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
"""What ends the index of a TensorFlow checkpoint, and a checkpoint of the first format."""
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""How gzip, bzip2, xz and zstd begin."""


class Safetensors(Format):
    """Safetensors files. Tried first: they begin with a length, whose bytes may be another format's mark."""

    name = title = "safetensors"
    endings = (".safetensors",)
    aliases = ("st",)
    any_names = True
    shards = True

    def matches(self, sample: Sample) -> bool:
        """By the length of the header and its first character."""
        length = int.from_bytes(sample.head[:8], "little")
        return len(sample.head) > 8 and sample.head[8:9] == b"{" and length < 1 << 40

    def open(self, path: Path, how: Opening) -> Reader:
        """Map the file."""
        from ckptkit.formats.safetensors import SafetensorsReader

        return SafetensorsReader(path)

    def holds(self, spec: TensorSpec) -> bool:
        """What the header has a name for."""
        return spec.dtype.safetensors is not None

    def writer(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], **more: Any
    ) -> Writer:
        """Start a file, or shards."""
        from ckptkit.formats.safetensors import SafetensorsWriter

        return SafetensorsWriter(path, specs, metadata, **more)


class Torch(Format):
    """What torch.save has written over the years: zip archives, pickle streams, tar archives."""

    name = "torch"
    title = "PyTorch"
    endings = (".pth", ".pt", ".bin", ".pth.tar", ".pt.tar")
    also_endings = (".ckpt",)  # of Lightning
    aliases = ("pytorch", "pt", "pth")
    checksum = "zip CRC-32"
    shares_tensors = True

    def matches(self, sample: Sample) -> bool:
        """By a pickle, in an archive or by itself, that is not of another library."""
        if sample.is_folder:
            from ckptkit.formats.folders import is_unpacked_torch

            return is_unpacked_torch(sample.path)
        if sample.is_zip:
            return any(name.endswith("/data.pkl") for name in sample.zip_names)
        if sample.is_tar:
            return _is_torch_tar(sample)
        from ckptkit.formats.foreign import foreign_pickle
        from ckptkit.formats.torch_reader import MAX_PICKLE_HEAD, is_pickle

        return is_pickle(sample.head[:MAX_PICKLE_HEAD], sample.tail) and foreign_pickle(sample) is None

    def open(self, path: Path, how: Opening) -> Reader:
        """Read the pickle; nothing that it names is imported or called."""
        from ckptkit.formats.torch_reader import TorchReader

        return TorchReader(path, state_dict=how.state_dict, weights=how.weights, as_saved=how.as_saved)

    def holds(self, spec: TensorSpec) -> bool:
        """What a state dict can be unpickled to."""
        from ckptkit.formats.torch_writer import holds

        return holds(spec)

    def writer(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], **more: Any
    ) -> Writer:
        """Start a zip archive."""
        from ckptkit.formats.torch_writer import TorchWriter

        return TorchWriter(path, specs, metadata, **more)


class Tf(Format):
    """TensorFlow V2 checkpoints, which go by a prefix: an index and data files, or an archive of them."""

    name = "tf"
    title = "TensorFlow"
    endings = (".ckpt",)
    aliases = ("tensorflow", "tf2", "ckpt")
    layout = "keras"
    checksum = "crc32c"
    one_file = False

    def matches(self, sample: Sample) -> bool:
        """By the end of its index, less whole checkpoints of the first format; or by an archive."""
        if sample.tail == TABLE_MAGIC:
            from ckptkit.formats.foreign import is_tf_v1

            return not is_tf_v1(sample.path)
        if sample.head.startswith(PACKED):
            from ckptkit.formats.tar import packer_of_a_single_file

            return packer_of_a_single_file(sample.path) is None
        return sample.is_tar and not _is_torch_tar(sample)

    def open(self, path: Path, how: Opening) -> Reader:
        """Read the index, and map data files when they are asked for."""
        from ckptkit.formats.tf_bundle import TfBundleReader

        return TfBundleReader(path)

    def holds(self, spec: TensorSpec) -> bool:
        """What the index has a number for."""
        return spec.dtype.tf is not None

    def beside(self, path: Path) -> Iterator[Path]:
        """The index and the data files of a prefix."""
        name = glob.escape(path.name)
        yield from path.parent.glob(f"{name}.index")
        yield from path.parent.glob(f"{name}.data-*-of-*")

    def writer(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], **more: Any
    ) -> Writer:
        """Start an index and one data file."""
        from ckptkit.formats.tf_bundle import TfBundleWriter

        return TfBundleWriter(path, specs, metadata, **more)


class Keras(Format):
    """Weights of every Keras, which are HDF5 files, and whole models of Keras 3, which are zip archives."""

    name = "keras"
    title = "Keras"
    endings = (".weights.h5",)
    aliases = ("h5",)
    layout = "keras"
    only_usual_layout = True
    names_rule = "Keras finds variables by layer and number, as in layers/dense/vars/0"

    def matches(self, sample: Sample) -> bool:
        """By the mark of HDF5, or by the weights in an archive."""
        if sample.is_zip and not any(name.endswith(".npy") for name in sample.zip_names):
            from ckptkit.formats.keras import KERAS_MEMBER

            return KERAS_MEMBER in sample.zip_names
        return sample.head.startswith(HDF5)

    def open(self, path: Path, how: Opening) -> Reader:
        """Read the tree of groups, and map datasets that are in one piece."""
        from ckptkit.formats.keras import KerasH5Reader

        return KerasH5Reader(path, is_shard=how.is_shard)

    def holds(self, spec: TensorSpec) -> bool:
        """What HDF5 describes."""
        from ckptkit.formats.hdf5_writer import type_message

        return type_message(spec.dtype) is not None

    def unloadable(self, names: Iterable[str]) -> list[str]:
        """Names that are not of a layer's variables."""
        from ckptkit.formats.keras import unloadable

        return unloadable(names)

    def writer(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], **more: Any
    ) -> Writer:
        """Start a file of weights as Keras 3 lays it out."""
        from ckptkit.formats.keras import KerasH5Writer

        return KerasH5Writer(path, specs, metadata, **more)


class Npz(Format):
    """Archives of numpy arrays."""

    name = title = "npz"
    endings = (".npz",)
    aliases = ("numpy", "np")
    any_names = True
    checksum = "zip CRC-32"

    def matches(self, sample: Sample) -> bool:
        """By an array in a zip archive."""
        return any(name.endswith(".npy") for name in sample.zip_names)

    def open(self, path: Path, how: Opening) -> Reader:
        """Map stored arrays; compressed ones are unpacked when read."""
        from ckptkit.formats.npz import NpzReader

        return NpzReader(path)

    def holds(self, spec: TensorSpec) -> bool:
        """What numpy has a name for."""
        from ckptkit.formats.npz import descr

        return descr(spec.dtype) is not None

    def writer(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], **more: Any
    ) -> Writer:
        """Start an archive, not compressed."""
        from ckptkit.formats.npz import NpzWriter

        return NpzWriter(path, specs, metadata, **more)


def _is_torch_tar(sample: Sample) -> bool:
    """The first PyTorch files were tar archives; TensorFlow checkpoints are published in them."""
    from ckptkit.formats.mapped_file import MappedFile
    from ckptkit.formats.torch_reader import tar_members

    with contextlib.closing(MappedFile(sample.path)) as file, contextlib.suppress(FormatError):
        return tar_members(file).keys() >= _TORCH_TAR
    return False  # the TensorFlow reader's own walk says what is wrong with it


BUILT_IN: Mapping[str, Format] = {
    format.name: format for format in (Safetensors(), Torch(), Tf(), Keras(), Npz())
}

WORDS: Mapping[str, str] = {word: format.name for format in BUILT_IN.values() for word in format.aliases}
"""What people type for a format."""


def added() -> Mapping[str, Format]:
    """The formats of other packages; asked for only where no built-in one has the name or knows the file."""
    return plugins.load("ckptkit.formats", Format, (*BUILT_IN, *WORDS))


def format_of(name: str) -> Format:
    """The format of a name that is exact: from a reader, a registry, or an option that has been looked up.

    Raises
    ------
    UsageError
        There is none.

    Examples
    --------
    >>> format_of("keras").endings
    ('.weights.h5',)
    """
    found = BUILT_IN.get(name) or added().get(name)
    if found is None:
        raise UsageError(f"unknown format {name!r}", hint=f"one of {', '.join((*BUILT_IN, *added()))}")
    return found


def may_begin(format: str, head: bytes) -> bool:
    """Whether a file of a built-in format, packed or not, can begin so; True for those of other packages."""
    sample = Sample(Path(), head)
    return (
        format not in BUILT_IN
        or head.startswith((b"\x80", HDF5[:4], *PACKED))
        or head[:2] == b"PK"
        or head[8:9] == b"{"  # safetensors
        or sample.is_tar
    )
