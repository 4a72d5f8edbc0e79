"""Which format a path holds, told from its content and never from its name alone.

To add a format: one file beside this one, and one row in `_RULES` (and one in `_WRITERS`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ckptkit.base.errors import FormatError, NotFoundError, UsageError
from ckptkit.base.tensors import TensorSpec
from ckptkit.formats.base import Reader, Weights, Writer
from ckptkit.formats.foreign import (
    TABLE_MAGIC,
    Foreign,
    Sample,
    foreign_pickle,
    is_tf_v1,
    of_distcp,
    of_zip,
    packed,
    tf_v1,
)
from ckptkit.formats.shards import INDEX_ENDINGS, ShardedReader, index_beside, numbered

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_REACH = 0xFFFF + 22
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_LEGACY_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


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


def open_reader(
    path: Path | str,
    *,
    state_dict: str | None = None,
    weights: Weights | None = None,
    as_saved: bool = False,
) -> Reader:
    """Open a checkpoint of any format.

    Parameters
    ----------
    path : str or Path
        A file, a folder, or the prefix of a TensorFlow checkpoint.
    state_dict : str, optional
        For PyTorch files that hold several: which one.
    weights : {"auto", "ema", "raw"}, optional
        For PyTorch files that hold moving averages in a state dict of their own: which copy. Default: the
        plain state dict. See `ckptkit.formats.torch_zip.TorchReader`.
    as_saved : bool
        Leave the prefix ``module.`` of PyTorch files on.

    Raises
    ------
    NotFoundError
        Nothing of that name, or no such state dict in it.
    FormatError
        Not a checkpoint, with what it is instead; or a damaged one.
    """
    reader = _open(_Probe(Path(path), None, state_dict, weights, as_saved=as_saved))
    if state_dict and not reader.state_dicts:
        reader.close()
        raise NotFoundError(
            f"{path}: no state dict {state_dict!r}: a {reader.format} file holds one, without a name",
            hint="leave --state-dict out",
        )
    return reader


def _open(probe: _Probe) -> Reader:
    for rule in _RULES:
        if rule.matches(probe):
            if rule.one_file:
                _refuse_second_kind(probe)
            reader = rule.open(probe)
            break
    else:
        found = Foreign.of(probe)
        if found is not None:
            raise found.error(probe.path)
        raise FormatError(
            probe.path,
            f"not a checkpoint of any known format (it starts with {probe.head[:8].hex(' ')})",
            hint="known are TensorFlow, PyTorch, safetensors, Keras and npz",
        )
    if numbered(probe.path.name) and not probe.is_shard and reader.format != "keras":
        index = index_beside(probe.path)
        others = f", which {index.name} names," if index else ""
        reader.notes = [
            *reader.notes,
            f"one of several shards: the tensors of the others{others} are not read",
        ]
    return reader


@dataclass(frozen=True)
class _Probe(Sample):
    """A path, its first bytes read once, and what is wanted of it."""

    state_dict: str | None = None
    weights: Weights | None = None
    as_saved: bool = False
    is_shard: bool = False

    @cached_property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @cached_property
    def is_prefix(self) -> bool:
        name = self.path.name
        return bool(name) and not self.path.is_file() and self.path.with_name(name + ".index").is_file()

    @property
    def first_zip_name(self) -> str:
        """Name of the first entry, if the file is a zip archive."""
        length = int.from_bytes(self.head[26:28], "little")
        return self.head[30 : 30 + length].decode("utf-8", "replace")

    @cached_property
    def hdf5_places(self) -> list[int]:
        """Where an HDF5 file could begin that is in this one: programs look at powers of two for it."""
        places = [0, *(512 << power for power in range(40) if 512 << power < self.size - len(_HDF5))]
        return [at for at in places if self.around(at).startswith(_HDF5)]

    @property
    def ends_as_zip(self) -> bool:
        """Whether an end of a zip archive is within the reach of programs that look for it from behind."""
        tail = self.read(max(0, self.size - _ZIP_REACH), _ZIP_REACH)
        if _ZIP[1] not in tail:
            return False
        from ckptkit.formats.zip_directory import ends_as_zip

        return ends_as_zip(tail, self.size)

    def around(self, offset: int) -> bytes:
        """A few bytes from some place on."""
        end = offset + len(_HDF5)
        return self.head[offset:end] if end <= len(self.head) else self.read(offset, len(_HDF5))

    def at(self, path: Path) -> Reader:
        """Open another path in the same way."""
        return _open(replace(self, path=path, given=None))

    def shard(self, path: Path) -> Reader:
        """Open a file that is a part of this checkpoint."""
        return _open(replace(self, path=path, given=None, is_shard=True, as_saved=True))


_Open = Callable[[_Probe], Reader]


@dataclass(frozen=True)
class _Rule:
    matches: Callable[[_Probe], bool]
    open: _Open
    one_file: bool = False  # told from what is in the file, which may be something else as well


# -- how to open ---------------------------------------------------------------------------------------------


def _open_tf(probe: _Probe) -> Reader:
    from ckptkit.formats.tf_bundle import TfBundleReader

    return TfBundleReader(probe.path)


def _open_torch(probe: _Probe) -> Reader:
    from ckptkit.formats.torch_zip import TorchReader

    return TorchReader(
        probe.path, state_dict=probe.state_dict, weights=probe.weights, as_saved=probe.as_saved
    )


def _open_safetensors(probe: _Probe) -> Reader:
    from ckptkit.formats.safetensors import SafetensorsReader

    return SafetensorsReader(probe.path)


def _open_keras(probe: _Probe) -> Reader:
    from ckptkit.formats.keras import KerasH5Reader

    return KerasH5Reader(probe.path, is_shard=probe.is_shard)


def _open_npz(probe: _Probe) -> Reader:
    from ckptkit.formats.npz import NpzReader

    return NpzReader(probe.path)


def _open_zip(probe: _Probe) -> Reader:
    """PyTorch files, npz and Keras models are zip archives all; what is inside decides."""
    names = _zip_names(probe)
    opener = _zip_opener(names)
    if opener is None:
        raise of_zip(probe.path, names).error(probe.path)
    return opener(probe)


def _zip_names(probe: _Probe) -> list[str]:
    first = probe.first_zip_name
    if first.endswith(("/data.pkl", ".npy")):
        return [first]
    from ckptkit.formats.mapped_file import MappedFile
    from ckptkit.formats.zip_directory import read_directory

    file = MappedFile(probe.path)
    try:
        return list(read_directory(file).entries)
    finally:
        file.close()


def _zip_opener(names: list[str]) -> _Open | None:
    if any(name.endswith("/data.pkl") for name in names):
        return _open_torch
    if any(name.endswith(".npy") for name in names):
        return _open_npz
    from ckptkit.formats.keras import KERAS_MEMBER  # only now: it takes as long as all of another format

    return _open_keras if KERAS_MEMBER in names else None


def _open_table(probe: _Probe) -> Reader:
    """The index of a TensorFlow checkpoint; whole checkpoints of its first format end in the same way."""
    if is_tf_v1(probe.path):
        raise tf_v1(probe.path).error(probe.path)
    return _open_tf(probe)


def _open_packed(probe: _Probe) -> Reader:
    """An archive of a TensorFlow checkpoint, or some other file in a packer's hands."""
    from ckptkit.formats.tar_stream import packer_of_a_single_file

    single = packer_of_a_single_file(probe.path)
    if single is not None:
        raise packed(probe.path, *single).error(probe.path)
    return _open_tf(probe)


def _open_pickle(probe: _Probe) -> Reader:
    found = foreign_pickle(probe)
    if found is not None:
        raise found.error(probe.path)
    return _open_torch(probe)


def _open_state(probe: _Probe) -> Reader:
    """TensorFlow's text file ``checkpoint``, which names the newest checkpoint of its folder."""
    from ckptkit.formats.tf_bundle import named_by

    named = named_by(probe.path)
    if named is None:
        return _open_tf(probe)
    if named.is_file() or named.with_name(f"{named.name}.index").is_file():
        return probe.at(named)
    raise FormatError(
        probe.path,
        f"is TensorFlow's record of its checkpoints; {named.name}, which it names, is not beside it",
        hint="give the prefix of a checkpoint that is there",
    )


def _open_shards(probe: _Probe) -> Reader:
    from ckptkit.formats.torch_zip import PREFIX

    reader: Reader = ShardedReader(probe.path, probe.shard)
    names = reader.specs.keys() | reader.left_out.keys()
    if reader.format == "torch" and not probe.as_saved and all(name.startswith(PREFIX) for name in names):
        from ckptkit.formats.renamed import Renamed

        note = f"the prefix '{PREFIX}' of every name is left out"
        return Renamed(reader, {name: name.removeprefix(PREFIX) for name in names}, note)
    return reader


def _open_folder(probe: _Probe) -> Reader:
    from ckptkit.formats.folders import checkpoint_in, is_unpacked_torch

    if is_unpacked_torch(probe.path):
        return _open_torch(probe)

    found = checkpoint_in(probe.path, _looks_like_checkpoint, _looks_like_pickle_or_archive)
    if found.parts[-2:] == ("variables", "variables"):
        return _open_tf(_Probe(found.parent.parent))  # a SavedModel is called by its folder
    return probe.at(found)


def _looks_like_checkpoint(path: Path) -> bool:
    probe = _Probe(path)
    if probe.head[:2] == b"PK" and path.suffix != ".distcp":
        try:
            return _zip_opener(_zip_names(probe)) is not None
        except FormatError:
            return True  # opening it says what is wrong with it
    is_legacy_torch = probe.head[:1] == b"\x80" and _LEGACY_TORCH in probe.head[:64]
    return _is_safetensors(probe) or is_legacy_torch or probe.head.startswith(_HDF5)


def _looks_like_pickle_or_archive(path: Path) -> bool:
    probe = _Probe(path)
    if probe.head[:1] == b"\x80":
        return foreign_pickle(probe) is None
    return probe.head.startswith(_PACKED) or probe.head[257:262] == b"ustar"


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


def _refuse_missing(probe: _Probe) -> Reader:
    raise NotFoundError(f"{probe.path}: no such file, folder or TensorFlow checkpoint prefix")


def _refuse_distcp(probe: _Probe) -> Reader:
    raise of_distcp(probe.path).error(probe.path)


def _refuse_special(probe: _Probe) -> Reader:
    raise FormatError(probe.path, "neither a file nor a folder")


def _refuse_user_block(probe: _Probe) -> Reader:
    raise FormatError(
        probe.path,
        f"is an HDF5 file behind a user block of {probe.hdf5_places[0]} bytes: not supported",
        hint="write it anew without one",
    )


def _refuse_second_kind(probe: _Probe) -> None:
    """Refuse a file that other programs could take for something else than what it begins as."""
    head = probe.head
    is_zip = head.startswith(_ZIP)
    is_tar = head[257:262] == b"ustar"
    kinds = {
        "a zip archive": is_zip or (not is_tar and probe.ends_as_zip),
        "a tar archive": is_tar,
        "an HDF5 file": not is_tar and bool(probe.hdf5_places),  # a tar's first member lies at such a place
        "a TensorFlow index": probe.tail == TABLE_MAGIC,
        "a safetensors file": _is_safetensors(probe) and int.from_bytes(head[:8], "little") < probe.size,
        "a pickle": head[:1] == b"\x80" and _LEGACY_TORCH in head[:64],
    }
    found = [kind for kind, is_one in kinds.items() if is_one]
    if len(found) > 1 and not (is_zip and len(found) == 2 and probe.hdf5_places and _are_members(probe)):
        raise FormatError(
            probe.path,
            f"is at once {' and '.join(found)}, and other programs may read the other",
            hint="fetch it again, or from another source",
        )


def _are_members(probe: _Probe) -> bool:
    """Whether each HDF5 file in a zip archive is a member of it, as the weights of a Keras model are."""
    from ckptkit.formats.mapped_file import MappedFile
    from ckptkit.formats.zip_directory import read_directory

    with contextlib.closing(MappedFile(probe.path)) as file:
        offsets = {entry.offset for entry in read_directory(file).entries.values()}
    return offsets.issuperset(probe.hdf5_places)


# -- how to tell ---------------------------------------------------------------------------------------------


def _starts_with(*magic: bytes) -> Callable[[_Probe], bool]:
    return lambda probe: probe.head.startswith(magic)


def _is_safetensors(probe: _Probe) -> bool:
    length = int.from_bytes(probe.head[:8], "little")
    return len(probe.head) > 8 and probe.head[8:9] == b"{" and length < 1 << 40


def _is_shard_index(probe: _Probe) -> bool:
    named = probe.path.name.endswith(INDEX_ENDINGS)
    return probe.text.startswith(b"{") and (named or b'"weight_map"' in probe.text) and not probe.is_shard


def _is_beside_index(probe: _Probe) -> bool:
    """Data files and graphs have no mark of their own; the index beside them says what they are."""
    if not probe.path.name.endswith((".index", ".meta")) and ".data-" not in probe.path.name:
        return False
    from ckptkit.formats.tf_bundle import prefix_of

    prefix = prefix_of(probe.path)
    return prefix is not None and prefix.with_name(f"{prefix.name}.index").is_file()


def _is_old_pickle(probe: _Probe) -> bool:
    """Pickles of protocols 0 and 1 have no mark."""
    from ckptkit.formats.torch_containers import MAX_PICKLE_HEAD, is_pickle

    return is_pickle(probe.head[:MAX_PICKLE_HEAD], probe.tail)


def _is_saved_model(probe: _Probe) -> bool:
    variables = probe.path.parent / "variables" / "variables.index"
    return probe.path.name == "saved_model.pb" and variables.is_file()


_RULES: tuple[_Rule, ...] = (
    _Rule(lambda probe: probe.is_prefix, _open_tf),
    _Rule(lambda probe: not probe.path.exists(), _refuse_missing),
    _Rule(lambda probe: probe.is_folder, _open_folder),
    _Rule(lambda probe: not probe.path.is_file(), _refuse_special),
    _Rule(_is_beside_index, _open_tf),
    _Rule(_is_saved_model, lambda probe: probe.at(probe.path.parent)),
    _Rule(lambda probe: probe.path.suffix == ".distcp", _refuse_distcp),
    _Rule(
        _is_safetensors, _open_safetensors, one_file=True
    ),  # before the others: its first bytes are a length, so anything
    _Rule(lambda probe: probe.tail == TABLE_MAGIC, _open_table, one_file=True),
    _Rule(_starts_with(*_ZIP), _open_zip, one_file=True),
    _Rule(_starts_with(b"\x80"), _open_pickle, one_file=True),
    _Rule(_starts_with(*_PACKED), _open_packed),
    _Rule(lambda probe: probe.head[257:262] == b"ustar", _open_tar, one_file=True),
    _Rule(_starts_with(_HDF5), _open_keras, one_file=True),
    _Rule(_starts_with(b"model_checkpoint_path:"), _open_state),
    _Rule(_is_shard_index, _open_shards),
    _Rule(_is_old_pickle, _open_pickle, one_file=True),
    _Rule(lambda probe: bool(probe.hdf5_places), _refuse_user_block),
)


# -- writers -------------------------------------------------------------------------------------------------


def _tf_writer() -> WriterFactory:
    from ckptkit.formats.tf_bundle import TfBundleWriter

    return TfBundleWriter


def _torch_writer() -> WriterFactory:
    from ckptkit.formats.torch_writer import TorchWriter

    return TorchWriter


def _safetensors_writer() -> WriterFactory:
    from ckptkit.formats.safetensors import SafetensorsWriter

    return SafetensorsWriter


def _keras_writer() -> WriterFactory:
    from ckptkit.formats.keras import KerasH5Writer

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
