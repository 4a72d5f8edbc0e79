"""Which checkpoint a path means and which format it has: by its content, never by its name alone."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckptkit.base.errors import FormatError, NotFoundError, UsageError, listed
from ckptkit.base.files import TEMPORARY, storage_error
from ckptkit.base.text import counted
from ckptkit.formats import foreign
from ckptkit.formats.base import HDF5_MARK, Format, Opening, Reader, Sample, Weights, Writer
from ckptkit.formats.builtin import BUILT_IN, added, format_of, is_dcp, is_orbax, is_unpacked_torch, is_zero
from ckptkit.formats.far_path import DOWNLOAD, as_path
from ckptkit.formats.shards import INDEX_ENDINGS, ShardedReader, index_beside, index_of, numbered, shards_of

_ZIP_END = b"PK\x05\x06"
_ZIP_REACH = 0xFFFF + 22


def writer_for(format: str) -> Callable[..., Writer]:
    """What starts a checkpoint of a format: called with path, specs and metadata, and ``force``.

    Examples
    --------
    >>> writer_for("xyz")
    Traceback (most recent call last):
    ...
    ckptkit...UsageError: unknown format 'xyz'; choose from safetensors, torch, tf, keras, keras2, npz, ...
    """
    return format_of(format).writer


def open_reader(
    path: Path | str,
    *,
    state_dict: str | None = None,
    weights: Weights | None = None,
    as_saved: bool = False,
) -> Reader:
    """Open a checkpoint of any format: a file, a folder, or the prefix of a TensorFlow checkpoint.

    ``state_dict`` and ``weights`` choose in PyTorch files that hold several state dicts, or moving averages
    in one of their own; ``as_saved`` leaves prefixes of wrappers on the names.
    """
    reader = _open(as_path(path), Opening(state_dict, weights, as_saved=as_saved))
    if state_dict and not reader.state_dicts:
        reader.close()
        raise NotFoundError(
            f"{path}: no state dict {state_dict!r}: a {reader.format} file holds one, without a name",
            hint="leave --state-dict out",
        )
    return reader


def _open(path: Path, how: Opening) -> Reader:
    reader = _opened(Sample(path), how)
    if numbered(path.name) and not how.is_shard and reader.format != "keras":  # whose reader refuses them
        index = index_beside(path)
        others = f", which {index.name} names," if index else ""
        reader.notes = [
            *reader.notes,
            f"one of several shards: the tensors of the others{others} are not read",
        ]
    return reader


def _opened(sample: Sample, how: Opening) -> Reader:
    for matches, open_it in _PATHS:
        if matches(sample):
            return open_it(sample, how)
    if _is_shard_index(sample) and not how.is_shard:
        return _open_shards(sample.path, how)
    if sample.is_far and (sample.is_packed or sample.is_tar):
        raise FormatError(
            sample.path,
            "is an archive, whose members cannot be read by ranges",
            hint=DOWNLOAD,
        )
    if not sample.is_packed:
        _refuse_second_kind(sample)
    format = _format_of(sample)
    if format is None:
        raise _not_a_checkpoint(sample)
    return format.open(sample.path, how)


def _format_of(sample: Sample) -> Format | None:
    """The first format that knows the content; other packages' are looked up where no built-in one does."""
    built_in = next((format for format in BUILT_IN.values() if format.matches(sample)), None)
    return built_in or _added_format_of(sample)


def _added_format_of(sample: Sample) -> Format | None:
    return next((format for format in added().values() if format.matches(sample)), None)


def _not_a_checkpoint(sample: Sample) -> FormatError:
    path = sample.path
    if sample.is_zip:
        return foreign.of_zip(path, sample.zip_names).error(path)
    if sample.is_packed:
        from ckptkit.formats.tar import packer_of_a_single_file

        if single := packer_of_a_single_file(path):
            return foreign.packed(path, *single).error(path)
    if places := _hdf5_places(sample):
        return FormatError(
            path,
            f"is an HDF5 file after a user block of {places[0]} bytes: not supported",
            hint="write it again without one",
        )
    found = foreign.Foreign.of(sample)
    if found is not None:
        return found.error(path)
    *titles, last = (format.title for format in (*BUILT_IN.values(), *added().values()))
    return FormatError(
        path,
        f"not a checkpoint of any known format (it starts with {sample.head[:8].hex(' ')})",
        hint=f"supported formats are {', '.join(titles)} and {last}",
    )


# -- paths that lead to a checkpoint -------------------------------------------------------------------------


def _is_prefix(sample: Sample) -> bool:
    path = sample.path
    return bool(path.name) and not path.is_file() and path.with_name(f"{path.name}.index").is_file()


def _is_tf_1_prefix(sample: Sample) -> bool:
    path = sample.path
    if sample.is_far or not path.name or path.exists():
        return False
    return any(path.parent.glob(f"{glob.escape(path.name)}-00000-of-?????"))


def _is_beside_index(sample: Sample) -> bool:
    """Data files and graphs have no mark of their own; the index beside them says what they are."""
    name = sample.path.name
    if not name.endswith((".index", ".meta")) and ".data-" not in name:
        return False
    from ckptkit.formats.tf_bundle import prefix_of

    prefix = prefix_of(sample.path)
    return prefix is not None and prefix.with_name(f"{prefix.name}.index").is_file()


def _is_saved_model(sample: Sample) -> bool:
    variables = sample.path.parent / "variables" / "variables.index"
    return sample.path.name == "saved_model.pb" and variables.is_file()


def _is_shard_index(sample: Sample) -> bool:
    named = sample.path.name.endswith(INDEX_ENDINGS)
    return sample.text.startswith(b"{") and (named or b'"weight_map"' in sample.text)


def _open_tf(sample: Sample, how: Opening) -> Reader:
    return BUILT_IN["tf"].open(sample.path, how)


def _open_tf_1(sample: Sample, how: Opening) -> Reader:
    return BUILT_IN["tf1"].open(sample.path, how)


def _open_saved_model(sample: Sample, how: Opening) -> Reader:
    return _open(sample.path.parent, how)


def _open_state(sample: Sample, how: Opening) -> Reader:
    """TensorFlow's text file ``checkpoint``, which names the newest checkpoint of its folder."""
    named = _named(sample.path)
    if named is None:
        return _open_tf(sample, how)
    if named.is_file() or named.with_name(f"{named.name}.index").is_file():
        return _open(named, how)
    raise FormatError(
        sample.path,
        f"is TensorFlow's record of its checkpoints; {named.name}, which it names, is not beside it",
        hint="give the prefix of a checkpoint that is there",
    )


def _open_variables(saved_model: Path, how: Opening) -> Reader:
    """A SavedModel, which is called by its folder: its variables, or the constants of one without any."""
    reader = BUILT_IN["tf"].open(saved_model, how)
    graph = saved_model / "saved_model.pb"
    if reader.specs or reader.left_out or not graph.is_file():
        return reader
    reader.close()
    return BUILT_IN["graphdef"].open(graph, how)


def _named(state: Path) -> Path | None:
    """The checkpoint that such a file names: its prefix, or the first of the shards of a V1 checkpoint."""
    from ckptkit.formats.tf_bundle import named_by

    named = named_by(state)
    return named and named.with_name(named.name.replace("-?????-of-", "-00000-of-"))


def _open_shards(path: Path, how: Opening) -> Reader:
    shard = replace(how, is_shard=True, as_saved=True)
    reader: Reader = ShardedReader(path, lambda path: _open(path, shard))
    names = reader.specs.keys() | reader.left_out.keys()
    prefix = format_of(reader.format).wrapper_prefix
    if prefix and not how.as_saved and all(name.startswith(prefix) for name in names):
        from ckptkit.formats.readers import Renamed

        note = f"the prefix '{prefix}' of every name is left out"
        return Renamed(reader, {name: name.removeprefix(prefix) for name in names}, note)
    return reader


def _open_folder(sample: Sample, how: Opening) -> Reader:
    """A folder that is a checkpoint, or the one checkpoint in it."""
    for name in _FOLDERS:
        if BUILT_IN[name].matches(sample):
            return BUILT_IN[name].open(sample.path, how)
    kinds = (_looks_like_checkpoint, _looks_like_pickle_or_archive, _looks_read_only, _looks_added)
    try:
        found = checkpoint_in(sample.path, *kinds)
    except (FormatError, UsageError):
        format = _added_format_of(sample)
        if format is None:
            raise
        return format.open(sample.path, how)
    if found.parts[-2:] == ("variables", "variables"):
        return _open_variables(found.parent.parent, how)
    return _open(found, how)


def _looks_like_checkpoint(path: Path) -> bool:
    sample = Sample(path)
    if sample.head[:2] == b"PK" and path.suffix != ".distcp":
        try:
            return any(BUILT_IN[name].matches(sample) for name in ("torch", "npz", "keras"))
        except FormatError:
            return True  # opening it says what is wrong with it
    return BUILT_IN["safetensors"].matches(sample) or sample.is_torch_pickle or sample.is_hdf5


def _looks_like_pickle_or_archive(path: Path) -> bool:
    sample = Sample(path)
    if sample.is_pickle:
        return foreign.foreign_pickle(sample) is None
    return sample.is_packed or sample.is_tar


def _looks_read_only(path: Path) -> bool:
    """Graphs and other frameworks' files, which may be beside the weights that they were made of."""
    sample = Sample(path)
    return any(format.matches(sample) for format in BUILT_IN.values() if format.read_only)


def _looks_added(path: Path) -> bool:
    return _added_format_of(Sample(path)) is not None


def _refuse_missing(sample: Sample, _how: Opening) -> Reader:
    if sample.is_far:
        raise NotFoundError(f"{sample.path}: the server has no such file", hint="check the address")
    raise NotFoundError(f"{sample.path}: no such file, folder or TensorFlow checkpoint prefix")


def _is_of_dcp(sample: Sample) -> bool:
    """The files of a torch.distributed checkpoint go by their folder."""
    return sample.path.suffix == ".distcp" or (sample.path.name == ".metadata" and is_dcp(sample.path.parent))


def _open_dcp(sample: Sample, how: Opening) -> Reader:
    if not is_dcp(sample.path.parent):
        raise foreign.of_distcp(sample.path.parent).error(sample.path)
    return BUILT_IN["dcp"].open(sample.path.parent, how)


def _refuse_special(sample: Sample, _how: Opening) -> Reader:
    raise FormatError(sample.path, "neither a file nor a folder")


_FOLDERS = ("torch", "dcp", "deepspeed", "orbax")
"""Formats whose checkpoints can be folders."""

_PATHS: tuple[tuple[Callable[[Sample], bool], Callable[[Sample, Opening], Reader]], ...] = (
    (_is_prefix, _open_tf),
    (_is_tf_1_prefix, _open_tf_1),
    (lambda sample: not sample.path.exists(), _refuse_missing),
    (lambda sample: sample.is_folder, _open_folder),
    (lambda sample: not sample.path.is_file(), _refuse_special),
    (_is_beside_index, _open_tf),
    (_is_saved_model, _open_saved_model),
    (_is_of_dcp, _open_dcp),
    (lambda sample: sample.head.startswith(b"model_checkpoint_path:"), _open_state),
)


# -- folders: the only checkpoint in it, or the one that its own files name -------------------

_MAX_ENTRIES = 20_000
_MAX_DEPTH = 3
_SHOWN = 5
_HUGGING_FACE = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "tf_model.h5",
    "flax_model.msgpack.index.json",
    "flax_model.msgpack",
)
"""What Hugging Face's libraries look for, best first: the same weights in several formats."""

_SAVED_MODEL = ("saved_model.pb", "keras_metadata.pb", "fingerprint.pb")
"""Files of a SavedModel that are not its variables."""

_BESIDE_IT = (
    *(*_HUGGING_FACE, "consolidated*.safetensors", "consolidated*.pth"),
    *("tf_model.h5.index.json", "tf_model-*.h5"),
)
_TRAINING = (
    *("optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "scaler.pt", "training_args.bin"),
    *("rng_state*.pth", "random_states_*.pkl", "*.pdopt"),
)
"""What trainers write beside the weights: state of their own."""

_LATER_SHARD = re.compile(r"-(?!00000)\d{5}-of-\d{5}$")
"""Those of a V1 checkpoint of TensorFlow go by the first of them."""
_STATE = "checkpoint"
"""TensorFlow's record of the checkpoints in a folder."""

IsCheckpoint = Callable[[Path], bool]


def checkpoint_in(folder: Path, *kinds: IsCheckpoint) -> Path:
    """The checkpoint of a folder: a file, a prefix, or a folder that is one.

    A kind says whether a file looks like a checkpoint; the next is asked where those before find none.
    """
    shown = f"{str(folder).rstrip(os.sep)}{os.sep}"
    names = _names(folder)
    if not names:
        raise FormatError(shown, "is empty")
    snapshot = _snapshot(folder, names)
    if snapshot is not None:
        return checkpoint_in(snapshot, *kinds)
    refused = foreign.of_folder(folder, names)
    if refused is not None:
        raise refused.error(shown)
    found: list[Path] = []
    for kind in kinds:
        found = found or _found(folder, names, kind)
        found = found or _latest(folder, names) or _below(folder, names, kind)
    if not found:
        raise _nothing(folder, shown, names)
    indexes = {index_of(path.name) for path in found}
    if None not in indexes:
        missing = ", ".join(sorted(filter(None, indexes)))
        shards = "a shard without its" if len(found) == 1 else f"{counted(len(found), 'shard')} without their"
        raise FormatError(shown, f"holds {shards} index", hint=f"fetch {missing}, too")
    if len(found) > 1:
        choices = [path.relative_to(folder).as_posix() for path in found]
        raise UsageError(
            f"{shown} holds {counted(len(found), 'checkpoint')}", hint=f"name one: {listed(choices, _SHOWN)}"
        )
    return found[0]


def chosen_of(shown: str, names: Sequence[str]) -> str:
    """The checkpoint among the files of a repository, of which the names alone are known.

    >>> chosen_of("hf://a/b", ["config.json", "model.safetensors", "pytorch_model.bin", "optimizer.pt"])
    'model.safetensors'
    """
    best = next((name for name in _HUGGING_FACE if name in names), None)
    if best is not None:
        return best
    found = [name for name in names if _may_be_checkpoint(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise FormatError(shown, f"holds no checkpoint, only {listed(names, _SHOWN)}")
    choices = listed([f"{shown}/{name}" for name in found], _SHOWN)
    raise UsageError(f"{shown} holds {counted(len(found), 'checkpoint')}", hint=f"name one: {choices}")


def _may_be_checkpoint(name: str) -> bool:
    """By a name's end alone; a shard goes by its index."""
    endings = [end for format in BUILT_IN.values() for end in (*format.endings, *format.also_endings)]
    wanted = name.endswith((*endings, *INDEX_ENDINGS, ".h5", ".keras", ".ckpt.index"))
    of_training = any(fnmatchcase(name.rpartition("/")[2], pattern) for pattern in _TRAINING)
    of_training = of_training or name.endswith(_SAVED_MODEL)
    return wanted and not of_training and not numbered(name)


def _names(folder: Path) -> list[str]:
    """What is in a folder, without hidden files of other programs and our own temporary ones."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith((TEMPORARY, "._")) and entry.name != ".DS_Store":
                    names.append(entry.name)
                if len(names) > _MAX_ENTRIES:
                    raise UsageError(f"{folder}: more than {_MAX_ENTRIES} files", hint="name the checkpoint")
    except OSError as error:
        raise storage_error(error, folder) from error
    return sorted(names)


def _snapshot(folder: Path, names: list[str]) -> Path | None:
    """The snapshot that a folder of Hugging Face's cache means: that of its branch main."""
    main = folder / "refs" / "main"
    if "snapshots" not in names or not main.is_file():
        return None
    with main.open("rb") as file:
        revision = file.read(100).decode("utf-8", "replace").strip()
    snapshot = folder / "snapshots" / revision
    return snapshot if re.fullmatch(r"[0-9a-f]+", revision) and snapshot.is_dir() else None


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint as a whole."""
    return is_unpacked_torch(folder) or is_dcp(folder) or is_zero(folder) or is_orbax(folder)


def _found(folder: Path, names: list[str], is_checkpoint: IsCheckpoint) -> list[Path]:
    """Every checkpoint at the top of a folder, less shards of others and copies in other formats."""
    if _is_checkpoint(folder):
        return [folder]
    indexes = [folder / name for name in names if name.endswith(INDEX_ENDINGS)]
    covered = {shard for index in indexes for shard in shards_of(index)}
    from ckptkit.formats.tf_bundle import prefixes_in  # not for those who write other formats

    found = {*prefixes_in(folder), *indexes}
    for name in names:
        of_training = any(fnmatchcase(name, pattern) for pattern in _TRAINING)
        of_others = name in covered or (indexes and numbered(name)) or name.startswith(".")
        of_others = of_others or _LATER_SHARD.search(name) is not None
        path = folder / name
        if not (of_training or of_others) and path.is_file() and is_checkpoint(path):
            found.add(path)
    newest = _named(folder / _STATE) if _STATE in names and (folder / _STATE).is_file() else None
    if newest in found:
        found = {newest}
    best = next((folder / name for name in _HUGGING_FACE if folder / name in found), None)
    if best is not None:
        found -= {path for path in found - {best} if any(fnmatchcase(path.name, p) for p in _BESIDE_IT)}
    return sorted(found)


def _latest(folder: Path, names: list[str]) -> list[Path]:
    """The step of a DeepSpeed run that its text file ``latest`` names."""
    if "latest" not in names or not (folder / "latest").is_file():
        return []
    with (folder / "latest").open("rb") as file:
        tag = file.read(256).decode("utf-8", "replace").strip()
    return [folder / tag] if tag in names and is_zero(folder / tag) else []


def _below(folder: Path, names: list[str], is_checkpoint: IsCheckpoint) -> list[Path]:
    """Every checkpoint of the folders below, to some depth; links to folders are followed no further."""
    found: list[Path] = []
    left = _MAX_ENTRIES
    for below, its_names in _folders(folder, names, _MAX_DEPTH):
        left -= len(its_names)
        if left < 0:
            raise UsageError(f"{folder}: more than {_MAX_ENTRIES} files below it", hint="name the checkpoint")
        found += _found(below, its_names, is_checkpoint)
    return found


def _folders(folder: Path, names: list[str], depth: int) -> Iterator[tuple[Path, list[str]]]:
    """The folders below that may hold checkpoints, with the names in each."""
    for name in names:
        below = folder / name
        if not name.startswith(".") and below.is_dir() and not below.is_symlink():
            its_names = _names(below)
            yield below, its_names
            if depth > 1 and not _is_checkpoint(below):
                yield from _folders(below, its_names, depth - 1)


def _nothing(folder: Path, shown: str, names: list[str]) -> FormatError:
    """The refusal of a folder without a checkpoint: the first thing in it that has a name says what it is."""
    for below, its_names in _folders(folder, names, 1):
        found = foreign.of_folder(below, its_names)
        if found is not None:
            return FormatError(shown, f"holds {found.what}: {below.name}{os.sep}", hint=found.hint)
    for name in names:
        if (folder / name).is_file():
            sample = Sample(folder / name)
            found = foreign.Foreign.of(sample, texts=name.endswith(foreign.LIKELY))
            if found is not None:
                return FormatError(shown, f"holds no checkpoint; {name} is {found.what}", hint=found.hint)
    return FormatError(shown, f"holds no checkpoint, only {listed(names, _SHOWN)}")


# -- files of two kinds --------------------------------------------------------------------------------------


def _refuse_second_kind(sample: Sample) -> None:
    """Refuse a file that other programs could take for something else than what it begins as."""
    head, is_tar = sample.head, sample.is_tar
    is_safetensors = BUILT_IN["safetensors"].matches(sample)
    is_hdf5 = not is_tar and bool(_hdf5_places(sample))  # a tar's first member is at such a place
    kinds = {
        "a zip archive": sample.is_zip or (not is_tar and _ends_as_zip(sample)),
        "a tar archive": is_tar,
        "an HDF5 file": is_hdf5,
        "a TensorFlow index": sample.is_table,
        "a safetensors file": is_safetensors and int.from_bytes(head[:8], "little") < sample.size,
        "a pickle": sample.is_torch_pickle,
    }
    found = [kind for kind, is_one in kinds.items() if is_one]
    if len(found) > 1 and not (sample.is_zip and len(found) == 2 and is_hdf5 and _are_members(sample)):
        raise FormatError(
            sample.path,
            f"is both {' and '.join(found)}, and other programs may read the other",
            hint="fetch it again, or from another source",
        )


def _hdf5_places(sample: Sample) -> list[int]:
    """Where an HDF5 file could begin that is in this one: programs look at powers of two for it."""
    last = (len(sample.head) if sample.is_far else sample.size) - len(HDF5_MARK)
    places = [0, *(512 << power for power in range(40) if 512 << power < last)]
    return [at for at in places if _around(sample, at).startswith(HDF5_MARK)]


def _around(sample: Sample, offset: int) -> bytes:
    end = offset + len(HDF5_MARK)
    return sample.head[offset:end] if end <= len(sample.head) else sample.read(offset, len(HDF5_MARK))


def _ends_as_zip(sample: Sample) -> bool:
    """Whether an end of a zip archive is where programs look for it, from the end backwards."""
    tail = sample.read(max(0, sample.size - _ZIP_REACH), _ZIP_REACH)
    if _ZIP_END not in tail:
        return False
    from ckptkit.formats.zip import ends_as_zip

    return ends_as_zip(tail, sample.size)


def _are_members(sample: Sample) -> bool:
    """Whether each HDF5 file in a zip archive is a member of it, as the weights of a Keras model are."""
    from ckptkit.formats.mapped_file import MappedFile
    from ckptkit.formats.zip import read_directory

    with contextlib.closing(MappedFile(sample.path)) as file:
        offsets = {entry.offset for entry in read_directory(file).entries.values()}
    return offsets.issuperset(_hdf5_places(sample))
