"""Case files: which two models to run on which inputs, and how far apart their outputs may be.

A case is a YAML file beside the code of the models::

    left:   {framework: torch, model: "nets:build_torch", checkpoint: a.pth}
    right:  {framework: keras, model: "nets:build_keras", checkpoint: b.weights.h5}
    inputs: {shape: [2, 32, 32, 3], layout: NHWC, seed: 7}
    stages: {"layer1": "block1", "layer2": "block2"}
    tolerance: {relative: 5.0e-5, outputs: 1.0e-4}

Paths and modules are looked for in the file's folder. Several inputs have names::

    inputs:
      ids: {shape: [2, 16], dtype: int64, max: 100}
      mask: {file: mask.npy}

An input goes to the parameter of its name, one of another name to the first that is left; a function with a
single parameter gets all inputs as a dictionary. What a factory gives:

- torch: a ``torch.nn.Module``. Its modules are stages.
- keras: a Keras model. Its layers are stages. ``checkpoint``: ``.weights.h5``, ``.keras``, ``.h5``.
- tensorflow: a ``tf.Module``, whose modules are stages, or a function. ``checkpoint``: one of TensorFlow; its
  objects may be below a key, such as ``model``.
- jax: a function of arrays; a pair of a function of parameters and arrays, and the parameters, a tree (their
  names are the keys joined by slashes); or a module of Flax, whose modules are stages, and its variables.

What a case runs is code: run only cases whose models you would run yourself.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from ckptkit._version import DOCUMENTATION
from ckptkit.base.errors import NotFoundError, UsageError, shown_faults
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.parity.compare import TOLERANCES, Limit, Tolerance
from ckptkit.parity.inputs import DEFAULT_SEED
from ckptkit.registry.document import Document, Location, bounded, parse, read_text

MAX_FILE_SIZE = 1_000_000
"""Bytes."""
MAX_NUMBERS = 1 << 28
"""Numbers in all inputs."""
SECONDS = 600
"""What a side may take, without ``timeout``."""

_MAX_BYTES = 8 * MAX_NUMBERS
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_MOST_FAULTS = 500
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

CaseFramework = Literal["torch", "keras", "tensorflow", "onnx", "jax", "recorded"]
ALIASES = {
    "pytorch": "torch",
    "tf": "tensorflow",
    "saved-model": "tensorflow",
    "onnxruntime": "onnx",
    "npz": "recorded",
}
"""Other words for a side's framework."""

Which = Literal["left", "right"]
SIDES: tuple[Which, Which] = ("left", "right")

DataLayout = Literal["NCHW", "NHWC", "NCW", "NWC", "NCDHW", "NDHWC"]


def _number(value: object) -> object:
    """YAML 1.1 reads 5e-5, without a point, as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _framework(value: object) -> object:
    return ALIASES.get(value.lower(), value.lower()) if isinstance(value, str) else value


_Figure = Annotated[PositiveFloat, Field(allow_inf_nan=False), BeforeValidator(_number)]


class SideText(BaseModel):
    """One model."""

    model_config = _STRICT

    framework: Annotated[CaseFramework, BeforeValidator(_framework)] = Field(
        description="What runs it; recorded: nothing, its outputs were recorded before."
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="package.module:factory, called without arguments; or an .onnx file, a .keras file, "
        "a SavedModel's folder, a recording.",
    )
    checkpoint: str | None = Field(
        None, description="What fills the model; absent: the factory's own weights."
    )
    state_dict: str | None = Field(
        None, description="Which state dict of a PyTorch file with several: the keys to it, joined by dots."
    )
    rules: str | None = Field(
        None,
        description="A rules file from the checkpoint's names to the model's; without it the framework's own "
        "loader reads the checkpoint.",
    )
    reverse: bool = Field(False, description="Read the rules from target to source.")
    layout: Literal["NCHW", "NHWC"] | None = Field(
        None,
        description="Where the model has its channels; default NCHW for torch and onnx, NHWC for the others.",
    )

    @property
    def recording(self) -> str:
        """The file of a recorded side."""
        return self.model or self.checkpoint or ""


class InputText(BaseModel):
    """One input: random numbers, or a file."""

    model_config = _STRICT

    shape: list[PositiveInt] | None = Field(None, description="With the batch first.")
    dtype: Literal["float32", "float64", "float16", "int32", "int64", "bool"] = Field(
        "float32", description="Floats are standard normal, integers even between min and max."
    )
    min: int = Field(0, description="Smallest random integer.")
    max: int | None = Field(None, description="Random integers are below it.")
    seed: int | None = Field(None, ge=0, lt=1 << 64, description="Of the random numbers.")
    file: str | None = Field(None, description="An .npy or .npz file instead of random numbers.")
    key: str | None = Field(None, description="Which array of an .npz file.")
    layout: DataLayout | None = Field(
        None, description="Of images and the like: a side with another order of axes gets them turned."
    )


class ToleranceText(BaseModel):
    """How far apart the sides may be."""

    model_config = _STRICT

    relative: _Figure = Field(
        TOLERANCES["float32"].stages.value,
        description="Of a stage: the largest difference divided by the left side's largest magnitude.",
    )
    outputs: _Figure = Field(
        TOLERANCES["float32"].logits.value, description="Of the models' outputs: the largest difference."
    )


class CaseText(BaseModel):
    """The whole file."""

    model_config = _STRICT

    left: SideText = Field(description="The reference: differences are relative to its outputs.")
    right: SideText = Field(description="What is compared with it.")
    inputs: dict[str, InputText] | None = Field(
        None, min_length=1, description="One input, or several by name. Absent: those of the recorded side."
    )
    stages: dict[str, str] | list[str] | None = Field(
        None,
        description="Modules of the left side and of the right; a list where both have the same names. "
        "Absent: outputs of equal shape are paired in the order of execution.",
    )
    tolerance: ToleranceText | None = Field(None, description="Absent: that of float32.")
    timeout: PositiveInt = Field(SECONDS, le=10_000_000, description="Seconds after which a side is ended.")


@dataclass(frozen=True)
class CaseFile:
    """A case, read and checked."""

    path: Path
    text: CaseText

    @property
    def folder(self) -> Path:
        """Where its paths begin."""
        return self.path.resolve().parent

    def place(self, name: str) -> Path:
        """A path of the file."""
        return self.folder / os.path.expanduser(name)  # noqa: PTH111 (Path's raises for unknown users)

    def side(self, which: Which) -> SideText:
        """One model."""
        return self.text.left if which == "left" else self.text.right

    def is_recorded(self, which: Which) -> bool:
        """Whether a side needs no process."""
        return self.side(which).framework == "recorded"

    def wanted(self, which: Which) -> list[str] | None:
        """The stages of one side; None where all are."""
        if self.stages is None:
            return None
        return list(self.stages) if which == "left" else list(self.stages.values())

    @property
    def stages(self) -> dict[str, str] | None:
        """The pairs, left to right; None where they are to be guessed."""
        stages = self.text.stages
        return {name: name for name in stages} if isinstance(stages, list) else stages

    @property
    def tolerance(self) -> Tolerance:
        """What agreement means."""
        given = self.text.tolerance or ToleranceText.model_validate({})
        return Tolerance(Limit(given.relative, relative=True), Limit(given.outputs, relative=False))

    def arrays(self) -> dict[str, Array]:
        """The inputs that the file describes."""
        made: dict[str, Array] = {}
        for place, (name, one) in enumerate((self.text.inputs or {}).items()):
            if one.file is None:
                made[name] = _random(one, place)
            else:
                made.update(_from_file(self, name, one))
        return made

    @property
    def layouts(self) -> dict[str, str | None]:
        """How each input's axes are ordered."""
        return {name: one.layout for name, one in (self.text.inputs or {}).items()}

    def __str__(self) -> str:
        if self.text.inputs is None:
            return "those of the recording"
        return ", ".join(
            f"{name + ' ' if name != UNNAMED else ''}{_described(one)}"
            for name, one in self.text.inputs.items()
        )


UNNAMED = "input"
"""What the only input is called where the file gives it no name."""


def _described(one: InputText) -> str:
    if one.file is not None:
        return one.file
    seed = DEFAULT_SEED if one.seed is None else one.seed
    return f"{list(one.shape or ())} {one.dtype}, seed {seed}"


def _random(one: InputText, place: int) -> Array:
    import numpy

    seed = DEFAULT_SEED if one.seed is None else one.seed
    generator = numpy.random.Generator(numpy.random.Philox(key=seed).jumped(place))
    shape = tuple(one.shape or ())
    if one.dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if one.dtype in ("int32", "int64"):
        assert one.max is not None
        return generator.integers(one.min, one.max, shape, dtype=numpy.dtype(one.dtype))
    return generator.standard_normal(shape).astype(one.dtype)


def _from_file(case: CaseFile, name: str, one: InputText) -> dict[str, Array]:
    """An array of a file; of an archive without ``key``, the one of that name, or all of them."""
    import numpy

    assert one.file is not None
    path = case.place(one.file)
    try:
        found = numpy.load(path, allow_pickle=False)
        if isinstance(found, numpy.ndarray):
            return {name: found}
        with found:
            keys = [one.key] if one.key else [name] if name in found else list(found)
            missing = [key for key in keys if key not in found]
            if missing or not keys:
                raise UsageError(
                    f"{path} has no array {one.key!r}", hint=f"choose from {', '.join(map(str, found))}"
                )
            if sum(member.file_size for member in found.zip.infolist()) > _MAX_BYTES:
                raise UsageError(f"{path}: more than {_MAX_BYTES >> 30} GB")
            return {name if len(keys) == 1 else key: found[key] for key in keys}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read as .npy or .npz: {error}") from error


# -- reading -------------------------------------------------------------------------------------------------


def load_case(path: Path | str, *, empty: Which | None = None) -> CaseFile:
    """Read a case file; every fault of it is named at once, with its line.

    The side that is to be ``empty`` loses its checkpoint and rules, which need not be there.
    """
    path = Path(path)
    absent = NotFoundError(f"{path}: no such case file", hint="check --case")
    text, _ = read_text(
        path, MAX_FILE_SIZE, absent, lambda fault: UsageError(f"{path}: {fault}"), "utf-8-sig"
    )
    document = parse(text)
    faults = list(document.faults)
    case = None
    if not faults:
        case, found = _checked(path, document, empty)
        faults = [(document.line(*place), what) for place, what in found[:_MOST_FAULTS]]
    if faults or case is None:
        every = dict.fromkeys(sorted(faults, key=lambda fault: fault[0]))
        raise UsageError(
            f"{path}: {counted(len(every), 'fault')}",
            details=shown_faults(f"line {line}: {bounded(what)}" for line, what in every),
            hint=f"how to write one: {DOCUMENTATION}/reference/cases.md",
        )
    return case


def _checked(
    path: Path, document: Document, empty: Which | None
) -> tuple[CaseFile | None, list[tuple[Location, str]]]:
    value = document.value
    if not isinstance(value, dict):
        return None, [((), "a case is a mapping with the keys left, right and inputs")]
    inputs = value.get("inputs")
    is_single = isinstance(inputs, dict) and any(
        not isinstance(inputs.get(key, {}), dict) for key in ("shape", "file")
    )
    if is_single:
        value = {**value, "inputs": {UNNAMED: inputs}}
    try:
        case = CaseFile(path, _emptied(CaseText.model_validate(value), empty))
    except ValidationError as error:
        found = []
        for detail in error.errors(include_url=False)[:_MOST_FAULTS]:
            place = tuple(part for part in detail["loc"] if part not in ("dict[str,str]", "list[str]"))
            if is_single and place[:1] == ("inputs",):
                place = (place[0], *place[2:])
            found.append((place, _sentence(place, detail)))
        return None, found
    return case, list(_faults(case, is_single))


def _emptied(text: CaseText, side: Which | None) -> CaseText:
    if side is None or getattr(text, side).framework == "recorded":
        return text
    nothing = {"checkpoint": None, "rules": None, "state_dict": None, "reverse": False}
    return text.model_copy(update={side: getattr(text, side).model_copy(update=nothing)})


def _sentence(place: Location, detail: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if detail["type"] == "extra_forbidden":
        known = [
            *CaseText.model_fields,
            *SideText.model_fields,
            *InputText.model_fields,
            "relative",
            "outputs",
        ]
        close = difflib.get_close_matches(str(place[-1]), known, 1)
        return f"unknown key {where}" + (f" (did you mean {close[0]}?)" if close else "")
    if detail["type"] == "missing":
        return f"{where} is missing"
    message = detail["msg"]
    return f"{where}: {message[:1].lower()}{message[1:]}"


def _faults(case: CaseFile, is_single: bool) -> Iterator[tuple[Location, str]]:
    """What no type of a single value says."""
    for name, side in (("left", case.text.left), ("right", case.text.right)):
        for key, what in _faults_of_side(case, side):
            yield (name, key), what
    if case.text.inputs is None and not any(map(case.is_recorded, SIDES)):
        yield ("inputs",), "inputs is missing: only a recorded side has some of its own"
    for name, one in (case.text.inputs or {}).items():
        place: Location = ("inputs",) if is_single else ("inputs", name)
        for key, what in _faults_of_input(case, one):
            yield (*place, key), what
    total = sum(math.prod(one.shape) for one in (case.text.inputs or {}).values() if one.shape)
    if total > MAX_NUMBERS and not is_single:
        yield ("inputs",), f"more than {MAX_NUMBERS:,} numbers in all inputs"
    right = list((case.stages or {}).values())
    for twice in sorted(name for name, count in Counter(right).items() if count > 1):
        yield ("stages",), f"{twice!r} is given twice as a stage of the right side"


def _faults_of_side(case: CaseFile, side: SideText) -> Iterator[tuple[str, str]]:
    if side.framework == "recorded":
        yield from _faults_of_recording(case, side)
        return
    if (what := _fault_of_model(case, side)) is not None:
        yield "model", what
    if side.framework == "onnx" and (side.checkpoint or side.rules):
        yield "checkpoint" if side.checkpoint else "rules", "onnx has its own weights"
    if side.rules is not None and side.checkpoint is None:
        yield "rules", "rules need a checkpoint"
    if side.checkpoint is not None:
        path = case.place(side.checkpoint)
        if not _exists(path) and not _exists(f"{path}.index"):
            yield "checkpoint", f"no such file {side.checkpoint!r}{_FROM}"
    if side.rules is not None and not _is_file(case.place(side.rules)):
        yield "rules", f"no such file {side.rules!r}{_FROM}"


_exists, _is_file = os.path.exists, os.path.isfile
"""Those of `Path` raise where a name is too long."""
_FROM = " (from the folder of the case)"


def _faults_of_recording(case: CaseFile, side: SideText) -> Iterator[tuple[str, str]]:
    if (side.model is None) == (side.checkpoint is None):
        yield "model", "a recorded side has one file: model"
    elif not _is_file(case.place(side.recording)):
        yield "model", f"no such file {side.recording!r}{_FROM}"
    if side.rules is not None:
        yield "rules", "recorded has its own weights"


def _fault_of_model(case: CaseFile, side: SideText) -> str | None:
    if side.model is None:
        return "model is missing"
    is_factory = _FACTORY.fullmatch(side.model) is not None
    if side.framework in ("torch", "jax"):
        return None if is_factory else f"{side.model!r} is not package.module:factory"
    place = case.place(side.model)
    if side.framework == "onnx":
        return None if _is_file(place) else f"no such file {side.model!r}{_FROM}"
    if is_factory or _exists(place):
        return None
    return f"{side.model!r} is neither package.module:factory nor a file{_FROM}"


def _faults_of_input(case: CaseFile, one: InputText) -> Iterator[tuple[str, str]]:
    if (one.shape is None) == (one.file is None):
        yield "shape", "an input has either a shape or a file"
    if one.file is not None and not _is_file(case.place(one.file)):
        yield "file", f"no such file {one.file!r} (from the folder of the case)"
    if one.shape is not None and math.prod(one.shape) > MAX_NUMBERS:
        yield "shape", f"more than {MAX_NUMBERS:,} numbers"
    if one.shape is not None and one.layout is not None and len(one.layout) != len(one.shape):
        yield (
            "layout",
            f"layout {one.layout} is of {counted(len(one.layout), 'axis')}, the shape has {len(one.shape)}",
        )
    if one.shape is not None and one.dtype in ("int32", "int64"):
        if one.max is None:
            yield "dtype", "random integers need max"
        elif one.max <= one.min or not -(1 << 31) <= one.min <= one.max < 1 << 31:
            yield "max", f"max must be above min ({one.min}), and both within 32 bits"


def reference() -> str:
    """Every key of a case file, as Markdown."""
    kinds: dict[str, type[BaseModel]] = {
        "The file": CaseText,
        "left, right": SideText,
        "inputs": InputText,
        "tolerance": ToleranceText,
    }
    parts = []
    for title, kind in kinds.items():
        rows = [
            f"| `{name}` | {_default(field)} | {field.description or ''} |"
            for name, field in kind.model_fields.items()
        ]
        parts.append("\n".join([f"## {title}", "", "| key | default | |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    return "" if field.default is None or field.default_factory else f"`{field.default}`".lower()
