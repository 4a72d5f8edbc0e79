"""Which checkpoint a folder means: the only one in it, or the one that its own files name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ckptkit.base.errors import FormatError, UsageError, listed, storage_error
from ckptkit.base.files import TEMPORARY
from ckptkit.formats import foreign
from ckptkit.formats.base import Sample
from ckptkit.formats.shards import INDEX_ENDINGS, index_of, numbered, shards_of

_MAX_ENTRIES = 20_000
_MAX_DEPTH = 3
_SHOWN = 5
_HUGGING_FACE = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "tf_model.h5",
)
"""What Hugging Face's libraries look for, best first: the same weights in several formats."""

_BESIDE_IT = (
    *(*_HUGGING_FACE, "consolidated*.safetensors", "consolidated*.pth"),
    *("tf_model.h5.index.json", "tf_model-*.h5", "flax_model.msgpack.index.json"),
)
_TRAINING = (
    *("optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "scaler.pt", "training_args.bin"),
    *("rng_state*.pth", "random_states_*.pkl"),
)
"""What trainers write beside the weights: state of their own."""

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
        refused = None if found else foreign.of_training_folder(folder, names)
        if refused is not None:
            raise refused.error(shown)
        found = found or _below(folder, names, kind)
    if not found:
        raise _nothing(folder, shown, names)
    indexes = {index_of(path.name) for path in found}
    if None not in indexes:
        missing = ", ".join(sorted(filter(None, indexes)))
        shards = "a shard without its" if len(found) == 1 else f"{len(found)} shards without their"
        raise FormatError(shown, f"holds {shards} index", hint=f"fetch {missing}, too")
    if len(found) > 1:
        choices = [path.relative_to(folder).as_posix() for path in found]
        raise UsageError(
            f"{shown} holds {len(found)} checkpoints", hint=f"name one: {listed(choices, _SHOWN)}"
        )
    return found[0]


def is_unpacked_torch(folder: Path) -> bool:
    """Whether a folder is what unzipping a file of torch.save gives."""
    return (folder / "data.pkl").is_file() and ((folder / "data").is_dir() or (folder / "version").is_file())


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


def _found(folder: Path, names: list[str], is_checkpoint: IsCheckpoint) -> list[Path]:
    """Every checkpoint at the top of a folder, less shards of others and copies in other formats."""
    if is_unpacked_torch(folder):
        return [folder]
    indexes = [folder / name for name in names if name.endswith(INDEX_ENDINGS)]
    covered = {shard for index in indexes for shard in shards_of(index)}
    from ckptkit.formats.tf_bundle import prefixes_in  # not for those who write other formats

    found = {*prefixes_in(folder), *indexes}
    for name in names:
        of_training = any(fnmatchcase(name, pattern) for pattern in _TRAINING)
        of_others = name in covered or (indexes and numbered(name)) or name.startswith(".")
        path = folder / name
        if not (of_training or of_others) and path.is_file() and is_checkpoint(path):
            found.add(path)
    best = next((folder / name for name in _HUGGING_FACE if folder / name in found), None)
    if best is not None:
        found -= {path for path in found - {best} if any(fnmatchcase(path.name, p) for p in _BESIDE_IT)}
    return sorted(found)


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
            if depth > 1 and not is_unpacked_torch(below):
                yield from _folders(below, its_names, depth - 1)


def _nothing(folder: Path, shown: str, names: list[str]) -> FormatError:
    """The refusal of a folder without a checkpoint: the first thing in it that has a name says what it is."""
    for below, its_names in _folders(folder, names, 1):
        found = foreign.of_folder(below, its_names) or foreign.of_training_folder(below, its_names)
        if found is not None:
            return FormatError(shown, f"holds {found.what}: {below.name}{os.sep}", hint=found.hint)
    for name in names:
        if (folder / name).is_file():
            sample = Sample(folder / name)
            found = foreign.Foreign.of(sample, texts=name.endswith(foreign.LIKELY))
            if found is not None:
                return FormatError(shown, f"holds no checkpoint; {name} is {found.what}", hint=found.hint)
    return FormatError(shown, f"holds no checkpoint, only {listed(names, _SHOWN)}")
