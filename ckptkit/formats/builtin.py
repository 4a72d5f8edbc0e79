"""The formats of ckptkit itself, and the way to those that other packages add.

A format is one class here, which knows everything that others ask of it, and a file or two beside this one
that are imported when a checkpoint is opened or written. A file is tried with them in their order.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ckptkit.base import packages
from ckptkit.base.errors import FormatError, UsageError, choose_from
from ckptkit.base.tensors import TensorSpec
from ckptkit.formats.base import Format, Opening, Reader, Sample, Writer

ORBAX_MARKS = ("_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA")
_TORCH_TAR = {"pickle", "storages", "tensors"}


class BuiltIn(Format):
    """A format whose reader and writer are found by ``module:class`` when they are needed."""

    reader_class: str
    writer_class: str
    opening: Sequence[str] = ()  # what of `Opening` its reader takes

    def open(self, path: Path, how: Opening) -> Reader:
        """Open it with the reader of its module."""
        options = {name: getattr(how, name) for name in self.opening}
        reader: Reader = _attribute(self.reader_class)(path, **options)
        return reader

    def writer(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], **more: Any
    ) -> Writer:
        """Start the writer of its module."""
        if self.read_only:
            return super().writer(path, specs, metadata, **more)
        writer: Writer = _attribute(self.writer_class)(path, specs, metadata, **more)
        return writer


def _attribute(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"ckptkit.formats.{module}"), name)


class Safetensors(BuiltIn):
    """Safetensors files. Tried first: they begin with a length, whose bytes may be another format's mark."""

    name = title = "safetensors"
    endings = (".safetensors",)
    aliases = ("st",)
    any_names = True
    shards = shares = True
    reader_class, writer_class = "safetensors:SafetensorsReader", "safetensors:SafetensorsWriter"

    def matches(self, sample: Sample) -> bool:
        """By the length of the header and its first character."""
        length = int.from_bytes(sample.head[:8], "little")
        return len(sample.head) > 8 and sample.head[8:9] == b"{" and length < 1 << 33  # what GGUF is above

    def holds(self, spec: TensorSpec) -> bool:
        """What the header has a name for, in whole bytes."""
        return spec.dtype.safetensors is not None and not spec.size * (spec.dtype.bits or 8) % 8


class Torch(BuiltIn):
    """What torch.save has written over the years: zip archives, pickle streams, tar archives."""

    name = "torch"
    title = "PyTorch"
    endings = (".pth", ".pt", ".bin", ".pth.tar", ".pt.tar")
    also_endings = (".ckpt",)  # of Lightning
    aliases = ("pytorch", "pt", "pth")
    checksum = "zip CRC-32"
    shards = shares = shares_tensors = True
    wrapper_prefix = "module."
    reader_class, writer_class = "torch_reader:TorchReader", "torch_writer:TorchWriter"
    opening = ("state_dict", "weights", "as_saved")

    def matches(self, sample: Sample) -> bool:
        """By a pickle, in an archive or by itself, that is not of another library."""
        if sample.is_folder:
            return is_unpacked_torch(sample.path)
        if sample.is_zip:
            return any(name.endswith("/data.pkl") for name in sample.zip_names)
        if sample.is_tar:
            return _is_torch_tar(sample)
        from ckptkit.formats.foreign import foreign_pickle, is_paddle
        from ckptkit.formats.torch_reader import MAX_PICKLE_HEAD, is_pickle

        ours = is_pickle(sample.head[:MAX_PICKLE_HEAD], sample.tail) and not sample.is_table
        return ours and not is_paddle(sample) and foreign_pickle(sample) is None

    def holds(self, spec: TensorSpec) -> bool:
        """What a state dict can be unpickled to."""
        from ckptkit.formats.torch_writer import holds

        return holds(spec)


def is_unpacked_torch(folder: Path) -> bool:
    """Whether a folder is what unzipping a file of torch.save gives."""
    return (folder / "data.pkl").is_file() and ((folder / "data").is_dir() or (folder / "version").is_file())


def _is_torch_tar(sample: Sample) -> bool:
    """The first PyTorch files were tar archives; TensorFlow checkpoints are published in them."""
    from ckptkit.formats.mapped_file import MappedFile
    from ckptkit.formats.torch_reader import tar_members

    with contextlib.closing(MappedFile(sample.path)) as file, contextlib.suppress(FormatError):
        return tar_members(file).keys() >= _TORCH_TAR
    return False  # the TensorFlow reader's own walk says what is wrong with it


class Tf(BuiltIn):
    """TensorFlow V2 checkpoints, which go by a prefix: an index and data files, or an archive of them."""

    name = "tf"
    title = "TensorFlow"
    endings = (".ckpt",)
    aliases = ("tensorflow", "tf2", "ckpt")
    layout = "keras"
    checksum = "crc32c"
    one_file = False
    reader_class, writer_class = "tf_bundle:TfBundleReader", "tf_bundle:TfBundleWriter"

    def matches(self, sample: Sample) -> bool:
        """By the end of its index, less whole checkpoints of the first format; or by an archive."""
        if sample.is_table:
            return not _is_tf_1(sample)
        if sample.is_packed:
            from ckptkit.formats.tar import packer_of_a_single_file

            return packer_of_a_single_file(sample.path) is None
        return sample.is_tar and not _is_torch_tar(sample)

    def holds(self, spec: TensorSpec) -> bool:
        """What the index has a number for."""
        return spec.dtype.tf is not None

    def beside(self, path: Path) -> Iterator[Path]:
        """The index and the data files of a prefix."""
        name = glob.escape(path.name)
        yield from path.parent.glob(f"{name}.index")
        yield from path.parent.glob(f"{name}.data-*-of-*")


def _is_tf_1(sample: Sample) -> bool:
    from ckptkit.formats.tf_v1 import is_v1

    return is_v1(sample)


class Tf1(BuiltIn):
    """TensorFlow V1 checkpoints: a file, or shards that go by a prefix."""

    name = "tf1"
    title = "TensorFlow V1"
    endings = ()
    checksum = "crc32c"
    layout = "keras"
    read_only = "TensorFlow itself reads V2 checkpoints (tf) in their place"
    reader_class = "tf_v1:TfV1Reader"

    def matches(self, sample: Sample) -> bool:
        """By a sorted table that holds the tensors too; the first entry of such has the empty key."""
        if sample.given is not None:
            return b"\0\0" in sample.head[:12]
        return sample.is_table and _is_tf_1(sample)


class Keras(BuiltIn):
    """Weights of Keras 3, which are HDF5 files, and its whole models, which are zip archives."""

    name = "keras"
    title = "Keras"
    endings = (".weights.h5",)
    aliases = ("h5",)
    layout = "keras"
    shards = shares = True
    only_usual_layout = True
    names_rule = "Keras finds variables by layer and number, as in layers/dense/vars/0"
    reader_class, writer_class = "keras:KerasH5Reader", "keras:KerasH5Writer"
    opening = ("is_shard",)

    def matches(self, sample: Sample) -> bool:
        """By the mark of HDF5, or by the weights in an archive."""
        if sample.is_zip and not any(name.endswith(".npy") for name in sample.zip_names):
            from ckptkit.formats.keras import KERAS_MEMBER

            return KERAS_MEMBER in sample.zip_names
        return sample.is_hdf5 and not _is_keras_2(sample)

    def holds(self, spec: TensorSpec) -> bool:
        """What HDF5 describes."""
        from ckptkit.formats.hdf5_writer import type_message

        return type_message(spec.dtype) is not None

    def unloadable(self, names: Iterable[str]) -> list[str]:
        """Names that are not of a layer's variables."""
        from ckptkit.formats.keras import unloadable

        return unloadable(names)


def _is_keras_2(sample: Sample) -> bool:
    from ckptkit.formats.keras import is_legacy_file

    return is_legacy_file(sample.path)


class Keras2(BuiltIn):
    """Weights and whole models of Keras 1 and 2, which are HDF5 files; weights are written."""

    name = "keras2"
    title = "Keras 2"
    endings = (".h5", ".hdf5")
    aliases = ("keras-2", "keras-legacy")
    layout = "keras"
    reader_class, writer_class = "keras:KerasH5Reader", "keras:Keras2Writer"

    def matches(self, sample: Sample) -> bool:
        """By the attributes of the root."""
        return sample.is_hdf5 and _is_keras_2(sample)

    def holds(self, spec: TensorSpec) -> bool:
        """What HDF5 describes, but bfloat16, which such files do not tell from two bytes of anything."""
        from ckptkit.formats.hdf5_writer import type_message

        return spec.dtype.name != "bfloat16" and type_message(spec.dtype) is not None


class Npz(BuiltIn):
    """Archives of numpy arrays."""

    name = title = "npz"
    endings = (".npz",)
    aliases = ("numpy", "np")
    any_names = True
    checksum = "zip CRC-32"
    reader_class, writer_class = "npz:NpzReader", "npz:NpzWriter"

    def matches(self, sample: Sample) -> bool:
        """By an array in a zip archive."""
        return any(name.endswith(".npy") for name in sample.zip_names)

    def holds(self, spec: TensorSpec) -> bool:
        """What numpy has a name for."""
        from ckptkit.formats.npz import descr

        return descr(spec.dtype) is not None


class Dcp(BuiltIn):
    """Folders of torch.distributed.checkpoint, whose ``.metadata`` says where each chunk of a tensor is."""

    name = "dcp"
    title = "torch.distributed (DCP)"
    endings = (".dcp",)
    aliases = ("fsdp", "distcp")
    checksum = "zip CRC-32"
    one_file = False
    folder = True
    shards = shares = True
    wrapper_prefix = "module."
    reader_class, writer_class = "dcp:DcpReader", "dcp_writer:DcpWriter"
    opening = ("state_dict", "weights", "as_saved")

    def matches(self, sample: Sample) -> bool:
        """By the class that the pickle ``.metadata`` names first."""
        return sample.is_folder and is_dcp(sample.path)

    def beside(self, path: Path) -> Iterator[Path]:
        """The files in the folder."""
        if path.is_dir():
            yield from path.iterdir()

    def refuse_existing(self, path: Path, *, force: bool) -> None:
        """A folder that holds nothing else may be replaced."""
        _attribute("dcp_writer:refuse_existing_folder")(path, force=force)

    def holds(self, spec: TensorSpec) -> bool:
        """What torch.save holds."""
        return BUILT_IN["torch"].holds(spec)


def is_dcp(folder: Path) -> bool:
    """Whether a folder is a torch.distributed checkpoint."""
    metadata = folder / ".metadata"
    return metadata.is_file() and b"torch.distributed" in Sample(metadata).head[:200]


class DeepSpeed(BuiltIn):
    """Steps of DeepSpeed's ZeRO, whose weights of full precision are the optimizer's."""

    name = "deepspeed"
    title = "DeepSpeed ZeRO"
    endings = ()
    checksum = "zip CRC-32"
    one_file = False
    read_only = "they are the state of a training run, which DeepSpeed alone goes on with"
    reader_class = "deepspeed:DeepSpeedReader"

    def matches(self, sample: Sample) -> bool:
        """By the optimizer's files."""
        return sample.is_folder and is_zero(sample.path)


def is_zero(folder: Path) -> bool:
    """Whether a folder is one step of DeepSpeed's ZeRO."""
    return any(folder.glob("*mp_rank_*optim_states.pt"))


class Orbax(BuiltIn):
    """Folders of Orbax, JAX's library of checkpoints."""

    name = "orbax"
    title = "Orbax"
    endings = ()
    one_file = False
    read_only = "Orbax restores a tree into a model of its own, which npz and safetensors can fill"
    reader_class = "orbax:OrbaxReader"

    def matches(self, sample: Sample) -> bool:
        """By the files that Orbax adds to the arrays."""
        return sample.is_folder and is_orbax(sample.path)


def is_orbax(folder: Path) -> bool:
    """Whether a folder is an Orbax checkpoint, or an item of one."""
    return any((folder / mark).is_file() for mark in ORBAX_MARKS)


class Paddle(BuiltIn):
    """Pickles of Paddle."""

    name = "paddle"
    title = "Paddle"
    endings = (".pdparams", ".pdopt")
    read_only = "Paddle makes tensors of the arrays in an .npz, and paddle.save writes them"
    reader_class = "paddle:PaddleReader"
    opening = ("state_dict", "weights", "as_saved")

    def matches(self, sample: Sample) -> bool:
        """By the table of names that Paddle adds."""
        from ckptkit.formats.foreign import is_paddle

        return is_paddle(sample)


class Flax(BuiltIn):
    """Msgpack files of Flax."""

    name = "flax"
    title = "Flax"
    endings = (".msgpack",)
    read_only = "Flax restores a state into a model of its own, which npz and safetensors can fill"
    reader_class = "flax:FlaxReader"

    def matches(self, sample: Sample) -> bool:
        """By tables of names."""
        from ckptkit.formats.flax import may_be_flax

        return may_be_flax(sample)


class Onnx(BuiltIn):
    """The weights in ONNX models."""

    name = "onnx"
    title = "ONNX"
    endings = (".onnx",)
    read_only = "a graph is needed around the weights, which 'ckptkit export' writes"
    reader_class = "onnx:OnnxReader"

    def matches(self, sample: Sample) -> bool:
        """By the fields of a model."""
        from ckptkit.formats.onnx import is_onnx

        return is_onnx(sample)


class GraphDef(BuiltIn):
    """The constants of TensorFlow graphs."""

    name = "graphdef"
    title = "TensorFlow GraphDef"
    endings = (".pb",)
    layout = "keras"
    read_only = "a graph is needed around the weights, which 'ckptkit export' writes"
    reader_class = "tf_graph:TfGraphReader"

    def matches(self, sample: Sample) -> bool:
        """By a node, or the two fields of a SavedModel."""
        from ckptkit.formats.tf_graph import is_graph

        return is_graph(sample)


class Gguf(BuiltIn):
    """Files of llama.cpp."""

    name = "gguf"
    title = "GGUF"
    endings = (".gguf",)
    read_only = "what a model needs beside its weights is for llama.cpp's own converters to write"
    reader_class = "gguf:GgufReader"

    def matches(self, sample: Sample) -> bool:
        """By its mark."""
        return sample.head.startswith(b"GGUF")


_ALL = (
    *(Safetensors(), Torch(), Tf(), Keras(), Keras2(), Npz(), Dcp(), DeepSpeed()),
    *(Tf1(), Orbax(), Paddle(), Flax(), Onnx(), GraphDef(), Gguf()),
)
BUILT_IN: Mapping[str, Format] = {format.name: format for format in _ALL}

WORDS: Mapping[str, str] = {word: format.name for format in BUILT_IN.values() for word in format.aliases}
"""What people type for a format."""


def added() -> Mapping[str, Format]:
    """The formats of other packages, loaded only if no built-in one has the name or knows the file."""
    return packages.plugins("ckptkit.formats", Format, (*BUILT_IN, *WORDS))


def format_of(name: str) -> Format:
    """The format of a name that is exact: from a reader, a registry, or an option that has been looked up.

    Examples
    --------
    >>> format_of("keras").endings
    ('.weights.h5',)
    """
    found = BUILT_IN.get(name) or added().get(name)
    if found is None:
        raise UsageError(f"unknown format {name!r}", hint=choose_from((*BUILT_IN, *added())))
    return found


def may_begin(format: str, head: bytes) -> bool:
    """Whether a file of a built-in format, packed or not, can begin so; True for those of other packages."""
    sample = Sample(Path(), head)
    return (
        format not in BUILT_IN
        or sample.is_pickle
        or sample.is_packed
        or sample.is_tar
        or head.startswith((b"PK", b"\x89HDF"))
        or head[8:9] == b"{"  # safetensors
        or (bool(BUILT_IN[format].read_only) and BUILT_IN[format].matches(sample))
    )
