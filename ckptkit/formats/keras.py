"""Keras' weights files (``.weights.h5``, ``.h5``), read and written without Keras and without libhdf5.

In Keras 3 a tensor's name is its path in the file: ``blocks/moga_block_3/attn/gate/vars/0``. A whole Keras 3
model (``.keras``, a zip archive) is read through the weights file in it. The files of Keras 1 and 2 have the
same container and other names (second half of this file).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.base.files import StagedFile
from ckptkit.base.tensors import DTYPES, Array, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats.foreign import filled, quoted
from ckptkit.formats.hdf5_reader import (
    BRAIN_FLOAT,
    NEITHER,
    VOID16,
    Contents,
    Dataset,
    Hdf5File,
    Header,
    NotRead,
    Texts,
    contents,
    read_chunks,
    refuse_overlap,
    single,
)
from ckptkit.formats.hdf5_writer import Hdf5Layout, hdf5_layout
from ckptkit.formats.json_text import parse_metadata
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.readers import MappedReader
from ckptkit.formats.sharded_writing import ShardedWriter, Shards, Share, cut
from ckptkit.formats.shards import KERAS_INDEX, KERAS_SHARD, index_beside, shards_of
from ckptkit.formats.writing import metadata_json
from ckptkit.formats.zip import DEFLATED, STORED, CheckedMembers, read_directory

KERAS_MEMBER = "model.weights.h5"
"""The weights file in a ``.keras`` archive."""

_TEXTS, _MAX_TEXT = ("metadata.json", "config.json"), 16 << 20

_ATTRIBUTE, _SHARD = "ckptkit", "ckptkit_shard"
"""Attributes of a file that is written here: the metadata, and that the file is one of several."""
_VARIABLES = "vars"
_OTHER_HDF5 = {
    "_NCProperties": "a netCDF file",
    "PYTABLES_FORMAT_VERSION": "an HDF5 file of PyTables (pandas)",
    "encoding-type": "an HDF5 file of AnnData",
}
"""Attributes of the root by which other programs are known."""

_DATASETS = (
    "save its datasets by name: python: import h5py, numpy; found = {}; h5py.File({path}).visititems("
    "lambda n, d: found.update({n: d[()]} if isinstance(d, h5py.Dataset) else {})); "
    "numpy.savez({npz}, **found)"
)


class KerasH5Reader(MappedReader):
    """A file of weights as Keras wrote it.

    Contiguous tensors are mapped, those in chunks put together when read.
    """

    format = "keras"

    def __init__(self, path: str | Path, *, is_shard: bool = False) -> None:
        self._is_shard = is_shard
        super().__init__(path)

    def _open(self) -> None:
        self._archive = _Archive(self._file) if self._file.data[:2] == b"PK" else None
        file = self._hdf5 = Hdf5File(self._file) if self._archive is None else self._archive.weights()
        of_root = file.attribute_texts(file.header(file.root))
        found = contents(file)
        refuse_overlap(file, found.datasets)
        ours = single(of_root.get(_ATTRIBUTE))
        metadata = {} if ours is None else parse_metadata(self.path, ours)
        if is_legacy(of_root):
            self.format = "keras2"
            found, origin = legacy_weights(file, of_root, found)
            metadata = metadata or origin
        elif not self._is_shard and (_ATTRIBUTE not in of_root or _SHARD in of_root):
            self._refuse_shard(found, known=_SHARD in of_root)
            self._refuse_other_hdf5(found.datasets, of_root)
        file.forget()
        self._datasets: Mapping[str, Dataset] = found.datasets
        self._whole: set[str] = set()  # datasets whose chunks have been unpacked, and so compared
        self.specs = {
            name: TensorSpec(name, dataset.dtype, dataset.shape) for name, dataset in self._datasets.items()
        }
        self.metadata = metadata
        self.left_out = found.not_read(tensors=True)
        self._also = found.not_read(tensors=False)

    @cached_property
    def same(self) -> Mapping[str, str]:
        """Tensors that are an earlier one under a second name (hard or soft links), and which that is."""
        first: dict[int, str] = {}
        earlier = {name: first.setdefault(id(dataset), name) for name, dataset in self._datasets.items()}
        return {name: other for name, other in earlier.items() if name != other}

    @cached_property
    def called(self) -> Mapping[str, str]:
        """Tensors by the names of their layers: ``layers/stem/vars/0``.

        The file numbers layers by class, in the order of the graph, and has their names in attributes of the
        groups ``vars``. Names that nobody chose are numbered in the order in which the layers were made.
        """
        chosen: dict[str, str] = {}
        for path, header in contents(self._hdf5).groups.items():
            group, _, last = path.rpartition("/")
            if last != _VARIABLES:
                continue
            with contextlib.suppress(FormatError):  # weights can be read without
                name = single(self._hdf5.attribute_texts(header).get("name"))
                if name:
                    chosen[group] = name
        self._hdf5.forget()
        found = {}
        for name in self.specs if chosen else ():
            parts = name.split("/")
            groups = accumulate(parts, lambda path, part: f"{path}/{part}")
            found[name] = "/".join(chosen.get(group, part) for group, part in zip(groups, parts, strict=True))
        return {name: called for name, called in found.items() if name != called}

    @property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes in the file are those of one before them: the ones of ``same``."""
        return list(self.same)

    def _refuse_shard(self, found: Contents, *, known: bool) -> None:
        """One of several files has a part of the weights; of Keras' only its name and its gaps tell so."""
        named = re.fullmatch(r"(.*)_(\d{5})\.weights\.h5", self.path.name)
        beside = index_beside(self.path) if named else None
        is_first = known or (named is not None and int(named[2]) == 0)
        is_later = _VARIABLES not in found.groups and (named is not None or _has_gap(found.datasets))
        if (beside is None and not is_first and not is_later) or (beside and len(shards_of(beside)) == 1):
            return
        index = beside or self.path.with_name(f"{named[1]}.weights.json" if named else "….weights.json")
        hint = f"give {index}"
        if beside is None:
            hint = f"put {index.name} and the other shards beside it and give {index.name}"
            if named is not None and is_first and not known:
                whole = self.path.with_name(f"{named[1]}.weights.h5")
                hint += f"; if it is whole, rename it: mv {quoted(self.path)} {quoted(whole)}"
        raise FormatError(self.path, "is one of several shards of Keras weights", hint=hint)

    def _refuse_other_hdf5(self, datasets: Mapping[str, Dataset], of_root: Collection[str]) -> None:
        if not any(name.split("/")[-2:-1] == [_VARIABLES] for name in datasets):
            sample = ", ".join(sorted(datasets)[:3]) or "nothing that is a tensor"
            kind = next((kind for mark, kind in _OTHER_HDF5.items() if mark in of_root), "an HDF5 file")
            raise FormatError(
                self.path,
                f"is {kind}, not Keras weights (it holds {sample})",
                hint=filled(_DATASETS, self.path) if datasets else "give the file with the model's weights",
            )

    def _read(self, name: str) -> Array:
        """A view of the file, or a copy where it is in chunks or big-endian."""
        import numpy

        dataset = self._datasets[name]
        if dataset.nbytes == 0 or dataset.address is not None:
            offset = self._hdf5.start + (dataset.address or 0)
            array = self._file.view(offset, dataset.dtype, dataset.shape)
            if dataset.big_endian:
                array = array.byteswap()
        else:
            array = read_chunks(self._hdf5, dataset, name).astype(dataset.dtype.numpy, copy=False)
            self._whole.add(name)
        array.flags.writeable = False
        return numpy.asarray(array)

    def check(self, name: str, known: int | None = None) -> bool:
        """Whether a tensor has checksums and they match; one that does not raises FormatError."""
        self._require(name)
        self._check_bytes(name)
        dataset = self._datasets[name]
        if dataset.is_checked and name not in self._whole:
            read_chunks(self._hdf5, dataset, name)
            self._whole.add(name)
        return dataset.is_checked or self._archive is not None

    def check_rest(self) -> None:
        """Check every member of an archive that has not been checked."""
        if self._archive is not None:
            self._archive.members.require_all()

    def _check_bytes(self, _name: str) -> None:
        if self._archive is not None:
            self._archive.members.require(self._archive.held)

    def _place(self, name: str) -> tuple[int, int] | None:
        dataset = self._datasets[name]
        if dataset.address is None:
            return None
        return self._hdf5.start + dataset.address, dataset.nbytes

    def _is_plain(self, name: str) -> bool:
        return not self._datasets[name].big_endian


def _has_gap(datasets: Mapping[str, Dataset]) -> bool:
    """Whether a layer's variables begin with another number than 0."""
    first: dict[str, int] = {}
    for name in datasets:
        group, _, number = name.rpartition("/")
        if group.endswith(f"/{_VARIABLES}") and number.isascii() and number.isdecimal() and len(number) < 9:
            first[group] = min(first.get(group, int(number)), int(number))
    return any(first.values())


def unloadable(names: Iterable[str]) -> list[str]:
    """Names of tensors that Keras' ``model.load_weights`` would find in no layer.

    It looks for a layer's variables by number in the group ``vars`` under the layer's place in the model; a
    layer that saves them by keys of its own has those there. Source: keras/src/saving/saving_lib.py,
    ``H5IOStore.get``, and ``Layer.load_own_variables``.

    Examples
    --------
    >>> unloadable(["layers/dense/vars/0", "vars/mean", "dense/kernel", "layers/norm/vars/1"])
    ['dense/kernel', 'layers/norm/vars/1']
    """
    keys: dict[str, set[str]] = {}
    for name in names:
        group, _, key = name.rpartition("/")
        keys.setdefault(group, set()).add(key)
    found = []
    for group, held in keys.items():
        numbered = all(key.isdecimal() for key in held)
        whole = not numbered or held == {str(number) for number in range(len(held))}
        if group.rpartition("/")[2] != _VARIABLES or not whole:
            found += [f"{group}/{key}" if group else key for key in sorted(held)]
    return found


class _Archive:
    """A ``.keras`` archive, whose short members are checked at once and the weights before they are read."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        directory = read_directory(file)
        held = directory.entries.get(KERAS_MEMBER)
        if held is None:
            raise FormatError(file.path, f"a zip archive without {KERAS_MEMBER}")
        if held.method != STORED:
            hint = f"unpack the archive and give {KERAS_MEMBER}"
            raise FormatError(file.path, f"its {KERAS_MEMBER} is compressed", hint=hint)
        self.held = held
        self.members = CheckedMembers(file, directory)
        for name in _TEXTS:
            text = directory.entries.get(name)
            if text is not None and text.size <= _MAX_TEXT and text.method in (STORED, DEFLATED):
                self.members.require(text)

    def weights(self) -> Hdf5File:
        """The HDF5 file in it."""
        return Hdf5File(self._file, self.held.offset, self.held.size)


class KerasH5Writer(ShardedWriter):
    """Writes weights of Keras 3: ``model.weights.h5``, or shards where it exceeds ``max_shard_size``.

    These are ``model_00000.weights.h5``, … and ``model.weights.json``. Keras' ``model.load_weights`` takes
    either when its names are those of the model. A layer's variables stay in one shard.
    """

    ending, index_ending = KERAS_SHARD, KERAS_INDEX

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
        layers: dict[str, list[TensorSpec]] = {}
        for spec in self.specs.values():
            layers.setdefault(_group_of(spec.name), []).append(spec)
        shards = cut(layers.values(), max_shard_size)
        if len(shards) > 1 and ".weights" in self._stem():  # which Keras takes out of the names of shards
            raise UsageError(
                f"{self.path}: Keras would look for its shards under another name",
                hint="choose a name without .weights before .weights.h5",
            )
        self._layouts = self._laid_out(shards)
        self.stage_shards(shards, max_shard_size, force=force, share=share)

    def _laid_out(self, shards: Shards) -> list[Hdf5Layout]:
        attributes = {_ATTRIBUTE: metadata_json(self.metadata)}
        if len(shards) > 1:
            attributes[_SHARD] = b"1"
        return [hdf5_layout(self.path, shard, {"": attributes}) for shard in shards]

    def _stem(self) -> str:
        return self.path.name.removesuffix(KERAS_SHARD)

    def index_path(self) -> Path:
        """Where the index will be."""
        return self.path.with_name(self._stem() + KERAS_INDEX)

    def shard_path(self, number: int, count: int) -> Path:
        """Where a shard will be."""
        return self.path.with_name(f"{self._stem()}_{number:05d}{KERAS_SHARD}")

    def begin(self, file: StagedFile, number: int) -> Mapping[str, int]:
        """Where the tensors go: the structures come after them. An empty tensor has no place."""
        return self._layouts[number].offsets

    def _settle(self, late: Mapping[str, str]) -> None:
        super()._settle(late)
        self._layouts = self._laid_out(self.shards)

    def end(self, file: StagedFile, number: int) -> None:
        """Write what is not the tensors."""
        layout = self._layouts[number]
        file.write_at(layout.head, 0)
        file.skip_to(layout.tail_offset)
        file.append(layout.tail)

    def index_bytes(self, homes: Mapping[str, str]) -> bytes:
        """The index as ``ShardedH5IOStore`` in keras/src/saving/saving_lib.py writes it."""
        total = sum(spec.nbytes for spec in self.specs.values())
        groups = {f"/{_group_of(name)}": home for name, home in homes.items()}
        table = {"metadata": {"total_size": total}, "weight_map": groups}
        return json.dumps(table, ensure_ascii=False, indent=4).encode(errors="backslashreplace")


def _group_of(name: str) -> str:
    return name.rpartition("/")[0]


# ----------------------------------------------------------------------------------------------------
# The ``.h5`` files of Keras 1 and 2, which tf-keras and Keras 3's legacy saving write too.
#
# ``model.save_weights`` writes one group a layer, named by the root's attribute ``layer_names``; the group's
# attribute ``weight_names`` names the datasets under it. ``model.save`` puts the same under the group
# ``model_weights``, beside the optimizer's state. Weights outside of any layer are in a group of their own
# (since 2.11). Source: keras/src/legacy/saving/legacy_h5_format.py, and files written by tf-keras 2.21.
#
# The first Keras (0.x) had no names: the root's attribute ``nb_layers`` counts groups ``layer_0``,
# ``layer_1`` …, and each one's ``nb_params`` its datasets ``param_0`` …; a tensor is called
# ``layer_0/param_0``.
#
# A tensor is called by its weight's whole name without TensorFlow's ``:0``: ``moat/stem/conv_0/kernel``.
# Where that does not name the layer (a model inside a model, a layer without a scope), the layer's name goes
# before it: ``dense_1/kernel``. So a name says where the weight belongs, whatever else is in the file.

_LAYERS, _WEIGHTS = "layer_names", "weight_names"
_MODEL_WEIGHTS, _OPTIMIZER = "model_weights", "optimizer_weights"
_OUTSIDE_LAYERS = "top_level_model_weights"
_ORIGIN = ("keras_version", "backend")
_CONFIG = "model_config"
_COUNTED_LAYERS, _COUNTED_WEIGHTS = "nb_layers", "nb_params"
_MARKS = frozenset({_LAYERS, f"{_LAYERS}0", "keras_version", _CONFIG, _COUNTED_LAYERS})
_VARIABLE = ":0"
_FORMAT_VERSION = b"2"
"""As ``keras_version``: the loaders of Keras take a file without one for one of Keras 1."""


@dataclass(frozen=True)
class _Weight:
    """One weight that a layer lists."""

    layer: str
    name: str
    path: str  # of its dataset, from the root


def is_legacy(of_root: Mapping[str, Texts]) -> bool:
    """Whether the attributes of a file's root group are those that Keras 1 and 2 write.

    Examples
    --------
    >>> is_legacy({"layer_names": ("dense",), "backend": ("tensorflow",)}), is_legacy({"ckptkit": ("{}",)})
    (True, False)
    """
    return not _MARKS.isdisjoint(of_root)


def legacy_weights(
    file: Hdf5File, of_root: Mapping[str, Texts], found: Contents
) -> tuple[Contents, dict[str, str]]:
    """Name the weights of a file by its own lists of them."""
    if _COUNTED_LAYERS in of_root and _LAYERS not in of_root:
        return _counted_weights(file, found), {}
    return _LegacyFile(file, of_root, found).weights()


def _counted_weights(file: Hdf5File, found: Contents) -> Contents:
    """The weights of Keras 0.x, whose layers and weights have numbers for names."""
    kept = Contents()
    layers = _count(file, file.header(file.root), _COUNTED_LAYERS, "/")
    for layer in (f"layer_{number}" for number in range(layers)):
        if layer not in found.groups:
            raise file.error(
                f"no group {layer} of the {counted(layers, 'layer')} that {_COUNTED_LAYERS} counts"
            )
        weights = _count(file, found.groups[layer], _COUNTED_WEIGHTS, layer)
        for path in (f"{layer}/param_{number}" for number in range(weights)):
            if path not in found.objects:
                raise file.error(f"no {path} of the {weights} that {_COUNTED_WEIGHTS} counts")
            kept.objects[path] = found.objects[path]
    others = [path for path in found.objects if path not in kept.objects]
    kept.objects.update(dict.fromkeys(others, NotRead(f"not among its layer's {_COUNTED_WEIGHTS}")))
    return kept


def _count(file: Hdf5File, group: Header, name: str, path: str) -> int:
    number = file.attribute_number(group, name)
    if number is None or number < 0:
        raise file.error(f"group {path}: its attribute {name} is not a count")
    return number


def _whole_name(weight: _Weight) -> str:
    """A weight's name, after its layer's unless that is a step of it, whole or up to ``_`` or ``:``."""
    layer, name = weight.layer, weight.name
    at = 0 if layer == _OUTSIDE_LAYERS else name.find(layer)
    while at >= 0:
        starts = at == 0 or name[at - 1] == "/"
        if layer == _OUTSIDE_LAYERS or (starts and name[at + len(layer) :][:1] in ("", "/", "_", ":")):
            return name
        at = name.find(layer, at + 1)
    return f"{layer}/{name}"


def _layers_of_bfloat16(config: str) -> set[str]:
    """Layers whose variables are bfloat16, as a model's configuration says; a file of weights has none.

    Examples
    --------
    >>> _layers_of_bfloat16('{"config": {"layers": [{"config": {"name": "d", "dtype": "bfloat16"}}]}}')
    {'d'}
    """
    layers: set[str] = set()
    with contextlib.suppress(ValueError, RecursionError):
        waiting = [json.loads(config)]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                name, policy = value.get("name"), value.get("dtype")
                policy = policy.get("config", {}) if isinstance(policy, dict) else {"name": policy}
                if isinstance(name, str) and isinstance(policy, dict) and policy.get("name") == BRAIN_FLOAT:
                    layers.add(name)
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
    return layers


class _LegacyFile:
    """Walks over the lists of a file."""

    def __init__(self, file: Hdf5File, of_root: Mapping[str, Texts], found: Contents) -> None:
        self._file = file
        self._found = found
        self._of_root = self._of_top = of_root
        self._top = ""  # path of the group with the layers, with a slash at the end
        if not {_LAYERS, f"{_LAYERS}0"} & of_root.keys():
            if _MODEL_WEIGHTS not in found.groups:
                raise file.error(
                    f"a Keras 2 file without weights: neither {_LAYERS} nor a group {_MODEL_WEIGHTS}",
                    hint="save the model's weights with model.save_weights",
                )
            self._of_top = file.attribute_texts(found.groups[_MODEL_WEIGHTS])
            self._top = f"{_MODEL_WEIGHTS}/"

    def weights(self) -> tuple[Contents, dict[str, str]]:
        """Name the tensors."""
        listed = list(self._listed())
        paths = {weight.path for weight in listed}
        kept = Contents()
        brain = _layers_of_bfloat16(single(self._of_root.get(_CONFIG)) or "")
        for name, weight in self._named(listed).items():
            found = self._found.objects.get(weight.path, NEITHER)
            if found == NEITHER:
                raise self._error(f"no dataset {weight.path}, which its layer lists among its weights")
            if isinstance(found, Dataset) and found.dtype == VOID16 and weight.layer in brain:
                found = replace(found, dtype=DTYPES[BRAIN_FLOAT])
            kept.objects[name] = found
        kept.objects.update(self._others(paths))
        return kept, self._origin()

    # -- lists -----------------------------------------------------------------------------------------------

    def _listed(self) -> Iterator[_Weight]:
        """Every weight that a layer lists, in order."""
        layers = [self._path(name, "layer") for name in self._list(self._of_top, _LAYERS, self._top)]
        if _OUTSIDE_LAYERS not in layers and self._top + _OUTSIDE_LAYERS in self._found.groups:
            layers.append(_OUTSIDE_LAYERS)
        self._refuse_twice(layers)
        for layer in layers:
            group = self._top + layer
            if group not in self._found.groups:
                raise self._error(f"no group of the layer {group}, which {_LAYERS} lists")
            texts = self._file.attribute_texts(self._found.groups[group])
            for text in self._list(texts, _WEIGHTS, group):
                name = self._path(text, "weight")
                yield _Weight(layer, name.removesuffix(_VARIABLE), f"{group}/{name}")

    def _list(self, texts: Mapping[str, Texts], name: str, group: str) -> list[str]:
        """A list of texts, split over several attributes where one cannot hold it."""
        numbers = sorted(
            int(end)
            for end in (key.removeprefix(name) for key in texts if key.startswith(name))
            if end.isascii() and end.isdecimal() and len(end) < 9
        )
        parts = [name] if name in texts else [f"{name}{number}" for number in numbers]
        whole = not numbers if name in texts else numbers == list(range(len(numbers)))
        if not parts or not whole:
            what = "no attribute" if not parts else "parts missing, or too many, of the attribute"
            raise self._error(f"group {group or '/'}: {what} {name}")
        found: list[str] = []
        for part in parts:
            values = texts.get(part)
            if values is None:
                raise self._error(f"group {group or '/'}: its attribute {part} is not a list of texts")
            found += values
        return found

    def _path(self, name: str, what: str) -> str:
        """A name as HDF5 follows it, which takes several slashes for one."""
        steps = [step for step in name.split("/") if step]
        if name.startswith("/") or not steps or steps[-1] == _VARIABLE or {".", ".."} & set(steps):
            raise self._error(f"a {what} named {name!r}, which leads to no place under its group")
        return "/".join(steps)

    # -- names -----------------------------------------------------------------------------------------------

    def _named(self, listed: list[_Weight]) -> dict[str, _Weight]:
        """The weights by the names of tensors; those that would meet have their layers' before them."""
        full = [f"{weight.layer}/{weight.name}" for weight in listed]
        whole = [_whole_name(weight) for weight in listed]
        count = Counter(whole)
        if len(count) < len(whole):
            self._refuse_twice(full)
        self._refuse_twice([weight.path for weight in listed])
        names = [one if count[one] == 1 else other for one, other in zip(whole, full, strict=True)]
        self._refuse_twice(names)
        return dict(zip(names, listed, strict=True))

    def _refuse_twice(self, names: list[str]) -> None:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise self._error(f"{name} is listed twice")
            seen.add(name)

    # -- what else is in the file ----------------------------------------------------------------------------

    def _others(self, listed: set[str]) -> dict[str, NotRead]:
        """What is not a weight of a layer."""
        others = [path for path in self._found.objects if path not in listed]
        unlisted = [path for path in others if not self._top or not path.startswith(f"{_OPTIMIZER}/")]
        found = dict.fromkeys(unlisted, NotRead(f"listed by no layer's {_WEIGHTS}"))
        if count := len(others) - len(unlisted):
            found[_OPTIMIZER] = NotRead(f"{counted(count, 'tensor')} of the optimizer")
        return found

    def _origin(self) -> dict[str, str]:
        found = {key: single(self._of_root.get(key)) or single(self._of_top.get(key)) for key in _ORIGIN}
        return {key: text for key, text in found.items() if text}

    def _error(self, reason: str) -> FormatError:
        return self._file.error(reason, hint="write it again with Keras' model.save_weights")


# -- writing -------------------------------------------------------------------------------------------------


def is_legacy_file(path: Path) -> bool:
    """Whether a file of HDF5 is of Keras 1 or 2, by its root; what is damaged is not."""
    with contextlib.suppress(FormatError), contextlib.closing(MappedFile(path)) as mapped:
        file = Hdf5File(mapped)
        return is_legacy(file.attribute_texts(file.header(file.root)))
    return False


class Keras2Writer(KerasH5Writer):
    """Writes a weights file of Keras 2, which ``model.load_weights(path, by_name=True)`` takes.

    A weight belongs to the layer that its name begins with; one whose name has a single step to none.
    """

    ending = ".h5"

    def _laid_out(self, shards: Shards) -> list[Hdf5Layout]:
        layers: dict[str, list[str]] = {}
        for name, spec in self.specs.items():
            if spec.dtype.name == "bfloat16":  # two bytes of anything to Keras 2
                raise UsageError(
                    f"{self.path}: a weights file of Keras 2 cannot hold {name!r} as {spec.dtype}",
                    hint="write float32 or float16, or safetensors",
                )
            layers.setdefault(_layer_of(name), []).append(name)
        root: dict[str, bytes | list[bytes]] = {
            _LAYERS: [layer.encode() for layer in layers if layer != _OUTSIDE_LAYERS],
            "backend": b"tensorflow",
            "keras_version": _FORMAT_VERSION,
            _ATTRIBUTE: metadata_json(self.metadata),
        }
        lists = {
            layer: {_WEIGHTS: [f"{name}{_VARIABLE}".encode() for name in names]}
            for layer, names in layers.items()
        }
        return [hdf5_layout(self.path, self.specs.values(), {"": root, **lists}, _path_of)]


def _layer_of(name: str) -> str:
    layer, slash, _ = name.partition("/")
    return layer if slash else _OUTSIDE_LAYERS


def _path_of(name: str) -> str:
    return f"{_layer_of(name)}/{name}{_VARIABLE}"
