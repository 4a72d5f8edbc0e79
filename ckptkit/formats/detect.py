"""Which format a path holds, told from its content and never from its name alone.

To add a format: one file beside this one, and one row in `_RULES` (and one in `_WRITERS`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ckptkit.errors import FormatError, NotFoundError, UsageError, storage_error
from ckptkit.formats.base import Reader, Weights, Writer
from ckptkit.tensors import TensorSpec

_HEAD_BYTES = 4096
_TF_TABLE_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_AGAIN = "fetch it again"


class WriterFactory(Protocol):
    """What makes a `Writer`: the same call for every format."""

    def __call__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> Writer:
        """Start a checkpoint at ``path``."""
        ...


def writer_for(format: str) -> WriterFactory:
    """The writer of a format: ``tf``, ``torch``, ``safetensors``, ``keras`` or ``npz``.

    Raises
    ------
    UsageError
        No such format.

    Examples
    --------
    >>> writer_for("torch").__name__
    'TorchWriter'
    """
    if format not in _WRITERS:
        raise UsageError(f"no format {format!r} to write", hint=f"one of {', '.join(_WRITERS)}")
    factory: WriterFactory = _WRITERS[format]()
    return factory


def open_reader(path: Path | str, *, state_dict: str | None = None, weights: Weights | None = None) -> Reader:
    """Open a checkpoint of any format.

    Parameters
    ----------
    path : str or Path
        A file, a folder, or the prefix of a TensorFlow checkpoint.
    state_dict : str, optional
        For PyTorch files that hold several: which one.
    weights : {"auto", "ema", "raw"}, optional
        For PyTorch files that hold moving averages in a state dict of their own: which copy; ``auto`` takes
        the moving averages. Default: the plain state dict. Files with one copy open whatever is asked.

    Raises
    ------
    NotFoundError
        Nothing of that name.
    FormatError
        Not a checkpoint, with what it is instead; or a damaged one.
    """
    probe = _Probe(Path(path), state_dict, weights)
    for rule in _RULES:
        if rule.matches(probe):
            return rule.open(probe)
    raise FormatError(
        probe.path,
        f"not a checkpoint of any known format (it starts with {probe.head[:8].hex(' ')})",
        hint="known are TensorFlow, PyTorch, safetensors, Keras and npz",
    )


@dataclass(frozen=True)
class _Probe:
    """A path, what is wanted of it, and its first bytes read once."""

    path: Path
    state_dict: str | None = None
    weights: Weights | None = None

    @cached_property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @cached_property
    def is_prefix(self) -> bool:
        name = self.path.name
        return bool(name) and not self.path.is_file() and self.path.with_name(name + ".index").is_file()

    @cached_property
    def size(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def head(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.read(_HEAD_BYTES)
        except OSError as error:
            raise storage_error(error, self.path) from error

    @cached_property
    def tail(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(max(0, self.size - 8))
            return file.read(8)

    @property
    def first_zip_name(self) -> str:
        """Name of the first entry, if the file is a zip archive."""
        length = int.from_bytes(self.head[26:28], "little")
        return self.head[30 : 30 + length].decode("utf-8", "replace")

    @cached_property
    def text(self) -> bytes:
        """The head as lower-case text, without what may stand before a document."""
        return self.head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()


_Open = Callable[[_Probe], Reader]


@dataclass(frozen=True)
class _Rule:
    matches: Callable[[_Probe], bool]
    open: _Open


# -- how to open ---------------------------------------------------------------------------------------------


def _open_tf(probe: _Probe) -> Reader:
    from ckptkit.formats.tf_bundle import TfBundleReader

    return TfBundleReader(probe.path)


def _open_torch(probe: _Probe) -> Reader:
    from ckptkit.formats.torch_zip import TorchReader

    return TorchReader(probe.path, state_dict=probe.state_dict, weights=probe.weights)


def _open_safetensors(probe: _Probe) -> Reader:
    from ckptkit.formats.safetensors_file import SafetensorsReader

    return SafetensorsReader(probe.path)


def _open_keras(probe: _Probe) -> Reader:
    from ckptkit.formats.keras_h5 import KerasH5Reader

    return KerasH5Reader(probe.path)


def _open_npz(probe: _Probe) -> Reader:
    from ckptkit.formats.npz import NpzReader

    return NpzReader(probe.path)


def _open_zip(probe: _Probe) -> Reader:
    """PyTorch files, npz and Keras models are zip archives all; what is inside decides."""
    names = [probe.first_zip_name]
    if not names[0].endswith(("/data.pkl", ".npy")):
        from ckptkit.formats.mapped_file import MappedFile
        from ckptkit.formats.zip_directory import read_directory

        file = MappedFile(probe.path)
        try:
            names = list(read_directory(file).entries)
        finally:
            file.close()
    if any(name.endswith("/data.pkl") for name in names):
        return _open_torch(probe)
    if any(name.endswith(".npy") for name in names):
        return _open_npz(probe)
    from ckptkit.formats.keras_h5 import KERAS_MEMBER  # only now: it takes as long as all of another format

    if KERAS_MEMBER in names:
        return _open_keras(probe)
    raise FormatError(
        probe.path,
        "a zip archive that is neither a PyTorch checkpoint, npz nor a Keras model",
        hint="unpack it and look inside",
    )


def _open_tar(probe: _Probe) -> Reader:
    """The first PyTorch files were tar archives; TensorFlow checkpoints are published in them."""
    from ckptkit.formats.mapped_file import MappedFile
    from ckptkit.formats.torch_containers import tar_members

    file = MappedFile(probe.path)
    try:
        names = tar_members(file).keys()
    except FormatError:
        names = {}.keys()  # the TensorFlow reader's own walk says what is wrong with it
    finally:
        file.close()
    return (_open_torch if {"pickle", "storages", "tensors"} <= names else _open_tf)(probe)


# -- what is no checkpoint -----------------------------------------------------------------------------------


def _refuse(what: str, hint: str | None = None) -> _Open:
    def refuse(probe: _Probe) -> Reader:
        raise FormatError(probe.path, f"not a checkpoint but {what}", hint=hint)

    return refuse


def _refuse_missing(probe: _Probe) -> Reader:
    raise NotFoundError(f"{probe.path}: no such file, folder or TensorFlow checkpoint prefix")


def _refuse_special(probe: _Probe) -> Reader:
    raise FormatError(probe.path, "neither a file nor a folder")


# -- how to tell ---------------------------------------------------------------------------------------------


def _starts_with(*magic: bytes) -> Callable[[_Probe], bool]:
    return lambda probe: probe.head.startswith(magic)


def _reads(*beginnings: bytes) -> Callable[[_Probe], bool]:
    return lambda probe: probe.text.startswith(beginnings)


def _is_safetensors(probe: _Probe) -> bool:
    length = int.from_bytes(probe.head[:8], "little")
    return len(probe.head) > 8 and probe.head[8:9] == b"{" and length < 1 << 40


def _is_safetensors_folder(probe: _Probe) -> bool:
    return probe.is_folder and any(
        next(probe.path.glob(pattern), None) is not None
        for pattern in ("*.safetensors.index.json", "*.safetensors")
    )


def _is_shard_index(probe: _Probe) -> bool:
    named = probe.path.name.endswith(".safetensors.index.json")
    return probe.text.startswith(b"{") and (named or b'"weight_map"' in probe.text)


def _is_data_shard(probe: _Probe) -> bool:
    """A ``.data`` file has no mark of its own; its name and the index beside it say what it is."""
    prefix, found, numbers = probe.path.name.rpartition(".data-")
    return bool(found) and "-of-" in numbers and probe.path.with_name(prefix + ".index").is_file()


_RULES: tuple[_Rule, ...] = (
    _Rule(lambda probe: probe.is_prefix, _open_tf),
    _Rule(lambda probe: not probe.path.exists(), _refuse_missing),
    _Rule(_is_safetensors_folder, _open_safetensors),
    _Rule(lambda probe: probe.is_folder, _open_tf),
    _Rule(lambda probe: not probe.path.is_file(), _refuse_special),
    _Rule(_is_data_shard, _open_tf),
    _Rule(lambda probe: probe.size == 0, _refuse("an empty file", _AGAIN)),
    _Rule(_is_safetensors, _open_safetensors),  # before the others: its first bytes are a length, so anything
    _Rule(lambda probe: probe.tail == _TF_TABLE_MAGIC, _open_tf),
    _Rule(_starts_with(b"PK\x03\x04", b"PK\x05\x06"), _open_zip),
    _Rule(_starts_with(b"\x80"), _open_torch),
    _Rule(_starts_with(b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"), _open_tf),
    _Rule(lambda probe: probe.head[257:262] == b"ustar", _open_tar),
    _Rule(_starts_with(b"\x89HDF\r\n\x1a\n"), _open_keras),
    _Rule(_starts_with(b"\x93NUMPY"), _refuse("a single .npy array", "put the arrays into an .npz by name")),
    _Rule(_starts_with(b"GGUF"), _refuse("a GGUF file", "convert from the original checkpoint")),
    _Rule(_starts_with(b"model_checkpoint_path:"), _open_tf),
    _Rule(
        _reads(b"version https://git-lfs"),
        _refuse(
            "a Git LFS pointer, which stands for the real file",
            "run 'git lfs pull', or fetch the file itself",
        ),
    ),
    _Rule(
        _reads(b"<!doctype html", b"<html", b"<head", b"<body", b"<!--"),
        _refuse("an HTML page", "the download gave a web page: fetch it again, or from another source"),
    ),
    _Rule(
        _reads(b"<?xml", b"<error"),
        _refuse("an XML document, such as servers send for an error", _AGAIN),
    ),
    _Rule(_is_shard_index, _open_safetensors),
    _Rule(_reads(b"{", b"["), _refuse("a JSON text, such as servers send for an error", _AGAIN)),
)


# -- writers -------------------------------------------------------------------------------------------------


def _tf_writer() -> WriterFactory:
    from ckptkit.formats.tf_bundle import TfBundleWriter

    return TfBundleWriter


def _torch_writer() -> WriterFactory:
    from ckptkit.formats.torch_writer import TorchWriter

    return TorchWriter


def _safetensors_writer() -> WriterFactory:
    from ckptkit.formats.safetensors_writer import SafetensorsWriter

    return SafetensorsWriter


def _keras_writer() -> WriterFactory:
    from ckptkit.formats.keras_h5 import KerasH5Writer

    return KerasH5Writer


def _npz_writer() -> WriterFactory:
    from ckptkit.formats.npz import NpzWriter

    return NpzWriter


_WRITERS: Mapping[str, Callable[[], Any]] = {
    "tf": _tf_writer,
    "torch": _torch_writer,
    "safetensors": _safetensors_writer,
    "keras": _keras_writer,
    "npz": _npz_writer,
}
