"""DeepSpeed's ZeRO checkpoints, read into the weights of full precision, without DeepSpeed or torch.

A training step is a folder. The files ``…_optim_states.pt``, one a rank, hold the float32 weights that the
optimizer steps: flat, and cut among the ranks. The model's own file, ``…_model_states.pt``, says in which
order and shape they are, and holds what is not trained: buffers and frozen weights. In stages 1 and 2 the
flat weights of a group of parameters are cut into as many runs as there are ranks; in stage 3 each parameter
is, padded to a multiple of their number. Sources: ``runtime/engine.py``, ``runtime/zero`` and
``utils/zero_to_fp32.py`` in deepspeed.
"""

from __future__ import annotations

import contextlib
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from ckptkit.base.errors import FormatError, listed
from ckptkit.base.tensors import DTYPES, Array, DType, RawTensor, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.pickle_machine import Inert
from ckptkit.formats.readers import MappedReader, whole_bytes
from ckptkit.formats.torch_pickle import TensorRef, UnsupportedTensor, describe, describe_extras, whole_number
from ckptkit.formats.torch_reader import TorchFile

_NAME = re.compile(r"(?:(?:bf16_|fp16_)?zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,6})_?(optim|model)_states\.pt")
_OTHER = re.compile(r"(?:layer_|expert_|expp_rank_).*_states\.pt")
_TABLES = frozenset(
    {
        "module",
        "param_shapes",
        "buffer_names",
        "shared_params",
        "frozen_param_shapes",
        "frozen_param_fragments",
    }
)
"""What of the model's file is put together here; the rest is described."""

_FLAT = ("single_partition_of_fp32_groups", "fp32_flat_groups")
"""Where the optimizer's file has the flat weights: stages 1 and 2, and stage 3."""

_UNIVERSAL = "join them with deepspeed.checkpoint.ds_to_universal"


@dataclass(frozen=True, slots=True)
class Run:
    """Elements of a file that follow each other."""

    file: TorchFile
    tensor: TensorRef


@dataclass(frozen=True, slots=True)
class Source:
    """Where the elements of a tensor are: one after the other in these runs."""

    runs: tuple[Run, ...]
    dtype: DType  # in the files


class Flat:
    """Runs one after the other, as one long one."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = list(runs)
        self._starts = [*accumulate((math.prod(run.tensor.shape) for run in self._runs), initial=0)]

    def __len__(self) -> int:
        return self._starts[-1]

    def cut(self, start: int, count: int) -> Iterator[Run]:
        """Some of its elements; ValueError where it has not so many."""
        if start + count > len(self):
            raise ValueError(
                f"the flat weights end after {counted(len(self), 'element')}, "
                f"at least {start + count} are needed"
            )
        index = max(bisect_right(self._starts, start) - 1, 0)
        while count > 0:
            run, begins = self._runs[index], self._starts[index]
            taken = min(count, self._starts[index + 1] - start)
            if taken:
                at = run.tensor.offset + start - begins
                yield Run(run.file, replace(run.tensor, offset=at, shape=(taken,), strides=(1,)))
            start, count, index = start + taken, count - taken, index + 1


def rank_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The model's files and the optimizer's, by rank; FormatError where some are missing or not known."""
    found: dict[str, dict[int, Path]] = {"model": {}, "optim": {}}
    paths = sorted(folder.glob("*_states.pt"))
    if any(_OTHER.fullmatch(path.name) for path in paths):
        raise FormatError(folder, "holds the parts of a pipeline or of experts", hint=_UNIVERSAL)
    matches = [(path, match) for path in paths if (match := _NAME.fullmatch(path.name))]
    if len(parallel := {match[2] for _, match in matches}) > 1:
        ranks = f"holds tensors that {counted(len(parallel), 'model-parallel rank')} share"
        raise FormatError(folder, ranks, hint=_UNIVERSAL)
    for path, match in matches:
        if found[match[3]].setdefault(int(match[1] or 0), path) is not path:
            raise FormatError(folder, f"{path.name}: rank {match[1] or 0} is there twice")
    for kind, files in found.items():
        if missing := sorted(set(range(max(len(files), 1))) - files.keys()):
            reason = f"lacks the {kind} states of rank {missing[0]}"
            raise FormatError(folder, reason, hint="fetch the missing files")
    model, optim = ([files[rank] for rank in sorted(files)] for files in found.values())
    return model, optim


def _table(value: object, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table of {what}, found {describe(value, 80)}")
    return value


def _shapes(value: object) -> dict[str, tuple[int, ...]]:
    """Names and shapes."""
    shapes = {}
    for name, shape in _table(value, "shapes").items():
        if not isinstance(name, str) or not isinstance(shape, (tuple, list)) or len(shape) > MAX_DIMS:
            raise ValueError(
                f"expected a name and a shape, found {describe(name, 80)}: {describe(shape, 80)}"
            )
        shapes[name] = tuple(whole_number(size, "a size") for size in shape)
    return shapes


def _stage(state: Mapping[object, object]) -> int:
    """The stage that a state says it is of; the optimizer for bfloat16 says none."""
    stage = state.get("zero_stage")
    if isinstance(stage, Inert) and stage.name.endswith(".ZeroStageEnum") and stage.args:
        stage = stage.args[0]
    if stage is None and _FLAT[0] in state:
        stage = 1
    if stage not in (1, 2, 3):
        raise ValueError(f"is of stage {describe(stage, 40)} of ZeRO, and ckptkit knows 1, 2 and 3")
    return int(stage)


class DeepSpeedReader(MappedReader):
    """A step that ``save_checkpoint`` of DeepSpeed wrote with ZeRO: ``global_step100``, or of another tag."""

    format = "deepspeed"

    def __init__(self, path: str | Path) -> None:
        self._model_paths, self._optim_paths = rank_files(Path(path))
        super().__init__(path, self._model_paths[0])

    def _open(self) -> None:
        self._models = [TorchFile(self._file), *map(self._torch_file, self._model_paths[1:])]
        self._optims = [*map(self._torch_file, self._optim_paths)]
        self._sources: dict[str, Source] = {}
        self._shared: dict[str, str] = {}
        self.specs: dict[str, TensorSpec] = {}
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []
        stage, flats = 0, []
        for file in self._optims:
            with _damage(file):
                state = _optimizer(file.root)
                stage = stage or _stage(state)
                self._require_ranks(stage, state)
                flats.append(_flats(file, state, stage))
        with _damage(self._models[0]):
            self._root = _table(self._models[0].root, "a model's state")
            if "ds_autoep_layers" in self._root or "autoep_layers" in self._root:
                raise FormatError(self.path, "holds experts that ranks share (AutoEP)", hint=_UNIVERSAL)
            self._put_together(stage, flats)
        for file in (*self._models, *self._optims):
            self.notes += [note for note in file.note_running() if note not in self.notes]

    def _torch_file(self, path: Path) -> TorchFile:
        self._files.append(MappedFile(path))
        return TorchFile(self._files[-1])

    def _require_ranks(self, stage: int, state: Mapping[object, object]) -> None:
        """Refuse a step that lacks ranks, or has more of them than were saved together."""
        count = state.get("partition_count")
        counts = count if isinstance(count, list) else [count]
        ranks = max((one for one in counts if isinstance(one, int)), default=0)
        for files, wanted in ((self._optims, ranks), (self._models, ranks if stage == 3 else 1)):
            if len(files) != wanted:
                hint = "fetch the missing files, or remove those of another save"
                raise FormatError(self.path, f"holds {counted(len(files), 'rank')} of {wanted}", hint=hint)

    # -- where each tensor is --------------------------------------------------------------------------------

    def _put_together(self, stage: int, flats: list[list[Run]]) -> None:
        module = _table(self._root.get("module") or {}, "the model's tensors")
        buffers = self._root.get("buffer_names")
        for name in buffers if isinstance(buffers, list) else ():
            if isinstance(name, str) and name in module:
                self._take_whole(name, module[name], widen=True)
        self._take_frozen(stage, self._root.get("frozen_param_shapes"))
        held = self._root.get("param_shapes")
        groups = [_shapes(one) for one in (held if isinstance(held, list) else [held])]
        (self._take_cut_parameters if stage == 3 else self._take_cut_groups)(groups, flats)
        for name, other in _table(self._root.get("shared_params") or {}, "shared tensors").items():
            if isinstance(name, str) and isinstance(other, str) and other in self.specs:
                self._take(name, self._sources[other], self.specs[other])
                self._shared[name] = other
        rest = [name for name in module if isinstance(name, str) and name not in self.specs]
        for name in rest:
            self._take_whole(name, module[name])
        if kept := [name for name in rest if name in self.specs]:
            count = counted(len(kept), "tensor", "are")
            self.notes.append(f"{count} not the optimizer's: taken as the model has it: {listed(kept, 3)}")

    def _take(self, name: str, source: Source, spec: TensorSpec) -> None:
        if name in self.specs:
            raise ValueError(f"two tensors are called {describe(name, 200)}")
        self._sources[name], self.specs[name] = source, replace(spec, name=name)

    def _take_whole(self, name: str, value: object, *, widen: bool = False) -> None:
        """A tensor that is not cut, as it is, or as float32."""
        if isinstance(value, UnsupportedTensor):
            self.left_out[name] = value.kind
        if not isinstance(value, TensorRef):
            return
        spec = self._models[0].spec(name, value)
        if isinstance(spec, str):
            self.left_out[name] = spec
            return
        source = Source((Run(self._models[0], value),), spec.dtype)
        narrow = widen and spec.dtype.is_float and spec.dtype.itemsize < 4
        self._take(name, source, replace(spec, dtype=DTYPES["float32"]) if narrow else spec)

    def _take_frozen(self, stage: int, held: object) -> None:
        """Weights that are not trained: whole, or in stage 3 a part a rank."""
        tables = [
            file.root.get("frozen_param_fragments") for file in self._models if isinstance(file.root, dict)
        ]
        for name, shape in _shapes(held or {}).items():
            parts = [_table(table, "frozen weights").get(name) for table in tables]
            if stage < 3:
                self._take_whole(name, parts[0])
                continue
            runs = [_run(file, part) for file, part in zip(self._models, parts, strict=True)]
            spec = self._models[0].spec(name, runs[0].tensor)
            assert isinstance(spec, TensorSpec)
            self._take_flat(name, shape, Flat(runs).cut(0, math.prod(shape)), spec.dtype)

    def _take_flat(self, name: str, shape: tuple[int, ...], runs: Iterable[Run], dtype: DType) -> None:
        self._take(name, Source(tuple(runs), dtype), TensorSpec(name, dtype, shape))

    def _take_cut_groups(self, groups: list[dict[str, tuple[int, ...]]], flats: list[list[Run]]) -> None:
        """Stages 1 and 2: the ranks' runs of a group, one after the other, are its parameters and padding."""
        if any(len(rank) != len(groups) for rank in flats):
            raise ValueError(
                f"{counted(len(groups), 'group')} of parameters, of which some ranks have others"
            )
        align = 2 * len(flats)
        for index, shapes in enumerate(groups):
            flat, offset = Flat(rank[index] for rank in flats), 0
            for name, shape in shapes.items():
                self._take_flat(name, shape, flat.cut(offset, math.prod(shape)), DTYPES["float32"])
                offset += math.prod(shape)
            if -(-offset // align) != -(-len(flat) // align):
                raise ValueError(
                    f"group {index} has {counted(len(flat), 'element')}, its parameters {offset}"
                )

    def _take_cut_parameters(self, groups: list[dict[str, tuple[int, ...]]], flats: list[list[Run]]) -> None:
        """Stage 3: every rank has a part of each parameter, in the order of the parameters."""
        ranks, offset = [Flat(rank) for rank in flats], 0
        for name, shape in ((name, shape) for shapes in groups for name, shape in shapes.items()):
            size = math.prod(shape)
            part = -(-size // len(ranks))
            runs = [
                run
                for number, flat in enumerate(ranks)
                for run in flat.cut(offset, max(min(part, size - number * part), 0))
            ]
            self._take_flat(name, shape, runs, DTYPES["float32"])
            offset += part
        for number, flat in enumerate(ranks):
            if len(flat) != offset:
                raise ValueError(
                    f"rank {number} has {counted(len(flat), 'element')}, its parameters {offset}"
                )

    # -- reading ---------------------------------------------------------------------------------------------

    def _read(self, name: str) -> Array:
        """A view of the mapped file, or a copy of what is in several runs."""
        spec, source = self.specs[name], self._sources[name]
        dtype = whole_bytes(self.path, replace(spec, dtype=source.dtype))
        if 0 in spec.shape:
            return self._file.view(0, spec.dtype, spec.shape)
        parts = [run.file.read(run.tensor, dtype) for run in source.runs]
        if len(parts) == 1:
            array = parts[0].reshape(spec.shape)
            array = array if dtype is spec.dtype else array.astype(spec.dtype.numpy)
            array.flags.writeable = False
            return array
        import numpy

        whole: Array = numpy.concatenate(parts)
        whole.flags.writeable = False
        return whole.reshape(spec.shape)

    def _raw(self, name: str) -> RawTensor | None:
        """None where a tensor is in several runs, or in another type."""
        spec, source = self.specs[name], self._sources[name]
        if 0 in spec.shape:
            return RawTensor(spec.shape, memoryview(b""))
        if len(source.runs) != 1 or source.dtype is not spec.dtype:
            return None
        (run,) = source.runs
        raw = run.file.raw(run.tensor, spec)
        return None if raw is None else RawTensor(spec.shape, raw.data)

    @property
    def same(self) -> Mapping[str, str]:
        """Tensors that are others under a second name."""
        return self._shared

    @property
    def overlapping(self) -> Sequence[str]:
        """The same tensors, whose bytes are those of others."""
        return [*self._shared]

    @cached_property
    def extras(self) -> Mapping[str, str]:
        """What else the model's file holds, and that the optimizer's files hold more than weights."""
        rest = {key: value for key, value in self._root.items() if key not in _TABLES}
        state = {"optimizer": f"the state of {counted(len(self._optims), 'rank')}"}
        return {**describe_extras(rest, []), **state}

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare what a tensor is in with the CRC-32 of its zip entry."""
        self._require(name)
        have = [run.file.check(run.tensor, f"tensor {name!r}") for run in self._sources[name].runs]
        return all(have)

    def _check_bytes(self, name: str) -> None:
        self.check(name)

    def check_rest(self) -> None:
        """Check every other member of every file."""
        for file in (*self._models, *self._optims):
            file.check_rest()

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        self._require(name)
        for run in self._sources[name].runs:
            run.file.release(run.tensor, self._sources[name].dtype)


@contextlib.contextmanager
def _damage(file: TorchFile) -> Iterator[None]:
    """What is wrong with a value is damage of its file."""
    with file.running():
        try:
            yield
        except ValueError as error:
            raise FormatError(file.path, str(error)) from error


def _optimizer(root: object) -> dict[Any, Any]:
    what = "an optimizer's state"
    return _table(_table(root, what).get("optimizer_state_dict"), what)


def _flats(file: TorchFile, state: Mapping[object, object], stage: int) -> list[Run]:
    """The flat weights of a rank, one run a group."""
    held = state.get(_FLAT[stage == 3])
    if not isinstance(held, list):
        raise ValueError(f"has no {_FLAT[stage == 3]}")
    runs = [_run(file, flat, "float32") for flat in held]
    file.refuse_expansion(sum(4 * run.tensor.shape[0] for run in runs))
    return runs


def _run(file: TorchFile, value: object, dtype: str | None = None) -> Run:
    """A flat tensor, which is inside its file."""
    if (
        not isinstance(value, TensorRef)
        or len(value.shape) != 1
        or (value.strides != (1,) and value.shape[0] > 1)
    ):
        raise ValueError(f"expected a flat tensor, found {describe(value, 80)}")
    spec = file.spec("a flat one", value)
    if isinstance(spec, str) or spec.dtype.bits is not None or (dtype and spec.dtype.name != dtype):
        raise ValueError(f"expected a flat tensor of {dtype or 'numbers'}, found {describe(value, 80)}")
    return Run(file, value)
