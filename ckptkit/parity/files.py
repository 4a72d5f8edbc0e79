"""A checkpoint as one of the two models reads it.

The Keras model is filled by the names that stand in the file, or by Keras' own loader, without any layout
rule, so that a wrong rule cannot cancel itself out; the PyTorch model gets canonical names, which a converted
file has already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.base.parse import MAX_SIDE
from ckptkit.base.tensors import DTYPES, Array
from ckptkit.convert.planning import FamilyPlan, plan_by_layout
from ckptkit.families.base import CANONICAL, Family, Recognition, Structure, require_recognition
from ckptkit.families.binding import Weights
from ckptkit.families.settings import missing_settings
from ckptkit.formats.base import Reader
from ckptkit.formats.names import EXTENSIONS
from ckptkit.formats.renamed import Renamed
from ckptkit.models.images.preprocessing import NORMALIZATIONS
from ckptkit.parity.comparison import TOLERANCES
from ckptkit.parity.inputs import Inputs, image_inputs, parse_resolution, random_inputs
from ckptkit.rules.language import Binding

if TYPE_CHECKING:
    from ckptkit.registry import Entry

_EXACT = "float32"


@dataclass(frozen=True)
class ModelFile:
    """An open checkpoint that fits an architecture.

    Parameters
    ----------
    reader : Reader
    plan : FamilyPlan
        Its moves to the canonical layout: which tensor of the file is which of the architecture.
    """

    reader: Reader
    plan: FamilyPlan

    @property
    def recognition(self) -> Recognition:
        """What it was recognised as."""
        return self.plan.recognition

    @property
    def is_for_keras(self) -> bool:
        """Whether the Keras model can read it without any layout rule."""
        family = self.recognition.family
        return self._is_keras_weights or self.recognition.layout in (
            family.keras_layout,
            family.layout_for("tf"),
        )

    @property
    def _is_keras_weights(self) -> bool:
        """Whether Keras' own ``load_weights`` takes it, which goes by the file's name and by its tensors'."""
        found = self.recognition
        return (
            self.reader.format == "keras"
            and not isinstance(self.reader, Renamed)
            and found.layout == found.family.layout_for("keras")
            and self.reader.path.name.endswith(EXTENSIONS["keras"])
        )

    @property
    def lacks_statistics(self) -> bool:
        """Whether the file has no BatchNorm moving statistics."""
        return self.plan.metadata["bn_statistics"] == "missing"

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Canonical name → element type in the file."""
        return {move.inward.canonical: self.reader.specs[move.source].dtype.name for move in self.plan.moves}

    @property
    def dtype(self) -> str:
        """Element types of the weights in words."""
        return ", ".join(sorted(dtype for dtype in set(self.dtypes.values()) if DTYPES[dtype].is_float))

    def fill_torch(self, module: Any, model: Any) -> None:
        """Fill the PyTorch model."""
        state = {move.target.name: move.apply(self._read(move.source)) for move in self.plan.moves}
        state |= {row.canonical: _neutral(row, row.canonical_shape) for row in self._missing_statistics()}
        module.load_state(model, state)
        self._release()

    def fill_keras(self, module: Any, model: Any) -> None:
        """Fill the Keras model by the file's own names, or by Keras' own loader."""
        if self._is_keras_weights and not self.lacks_statistics:
            model.load_weights(str(self.reader.path))
            return
        neutral = {row.external: _neutral(row, row.external_shape) for row in self._missing_statistics()}
        if self.recognition.layout == self.recognition.family.keras_layout:
            state = {move.inward.external: self._read(move.source) for move in self.plan.moves}
            module.load_state(model, state | neutral)
            self._release()
            return
        twin = self.recognition.table.layout.second_copy
        module.load_published(
            model,
            neutral.keys() | self.reader.specs.keys(),
            lambda name: neutral[name] if name in neutral else self._read(name),
            suffix=twin.suffix if twin is not None and twin.holds == self.plan.weights else "",
        )
        self._release()

    def _release(self) -> None:
        """Let the file's pages go before the forward pass needs memory."""
        for move in self.plan.moves:
            self.reader.release(move.source)

    def _read(self, name: str) -> Array:
        self.reader.check(name)
        return self.reader.read(name)

    def _missing_statistics(self) -> list[Binding]:
        if not self.lacks_statistics:
            return []
        return [row for row in self.recognition.table.bindings if row.part == "bn_statistics"]


def _neutral(row: Binding, shape: tuple[int, ...]) -> Array:
    """Mean 0 or variance 1: what a model has before its statistics are loaded."""
    import numpy

    return numpy.full(shape, 1 if row.canonical.endswith("var") else 0, dtype=numpy.float32)


def examine(
    reader: Reader,
    *,
    weights: Weights = "auto",
    variant: str | None = None,
    entry: Entry | None = None,
    allow_missing_bn: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ModelFile:
    """Set an open file against the architecture it is of; a headless one is accepted.

    Raises
    ------
    ConversionError
        When tensors are missing, unexpected or of another shape, or there are no BatchNorm statistics and
        ``allow_missing_bn`` is false.
    UsageError
        When ``weights`` asks for a copy that the file does not hold.
    """
    wanted = variant or (entry.variant if entry else None)
    recognition = require_recognition(reader.path, reader.specs, variant=wanted)
    plan = plan_by_layout(
        reader,
        recognition,
        CANONICAL,
        weights=weights,
        head=recognition.structure.num_classes is not None,
        allow_missing_bn=allow_missing_bn,
        settings=settings,
        entry=entry,
    )
    return ModelFile(reader, plan)


def has_head(reader: Reader, *, variant: str | None = None, entry: Entry | None = None) -> bool:
    """Whether a file holds a classification head."""
    asked = variant or (entry.variant if entry else None)
    return require_recognition(reader.path, reader.specs, variant=asked).structure.num_classes is not None


def require_same_model(source: ModelFile, other: ModelFile) -> None:
    """Refuse to compare files of different architectures.

    Raises
    ------
    ConversionError
        When variant, position embedding or head differ.
    """
    ours, theirs = source.recognition, other.recognition
    if (ours.variant, _as_published(ours.structure)) != (theirs.variant, _as_published(theirs.structure)):
        raise ConversionError(
            f"{other.reader.path} is {_in_words(theirs)}, {source.reader.path} is {_in_words(ours)}",
            hint="give a conversion of this very checkpoint",
        )


def _as_published(structure: Structure) -> Structure:
    """The structure before its position tables were resized, which leaves the model what it was."""
    return replace(structure, table_sizes=None)


def _in_words(recognition: Recognition) -> str:
    structure = recognition.structure
    position = " with" if structure.pos_emb else " without"
    embedding = f"{position} position embedding" if recognition.family.has_pos_emb else ""
    classes = f"{structure.num_classes} classes" if structure.num_classes else "no head"
    return f"{recognition.variant}{embedding}, {classes}"


def lossy_precision(source: ModelFile, converted: ModelFile) -> str:
    """Precision that the way from one file to the other rounded values to.

    Returns
    -------
    str
        ``float32`` when values were only moved, or widened, or rounded from float64.

    Raises
    ------
    UsageError
        When there is no tolerance for it.
    """
    lossy = {
        dtype
        for name, dtype in converted.dtypes.items()
        if dtype not in (_EXACT, "float64") and dtype != source.dtypes.get(name)
    }
    for dtype in lossy - TOLERANCES.keys():
        raise UsageError(f"{converted.reader.path} holds {dtype}", hint="there is no tolerance for that type")
    return max(lossy, key=lambda dtype: TOLERANCES[dtype].stages.value, default=_EXACT)


def settings_of(file: ModelFile) -> dict[str, Any]:
    """Behaviour settings that are said of a file: by the user, its entry or its metadata."""
    keys = file.recognition.family.setting_names
    return {key: json.loads(value) for key, value in file.plan.metadata.items() if key in keys}


def resolution_of(file: ModelFile) -> int | tuple[int, int] | None:
    """Input side, or height and width, that a file says it is for; see `said_resolution`."""
    return said_resolution(file.reader.metadata, file.reader.path)


def said_resolution(metadata: Mapping[str, str], path: Path) -> int | tuple[int, int] | None:
    """Input side, or height and width, that the metadata of a file give; None where they say nothing.

    Raises
    ------
    FormatError
        When what it says is no such thing.
    """
    text = metadata.get("resolution")
    if text is None:
        return None
    found = re.fullmatch("([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or max(sides) > MAX_SIDE:
        raise FormatError(
            path,
            f"its metadata says resolution is {text[:40]!r}, which is no size of an input",
            hint=f"at most {MAX_SIDE} pixels a side",
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def said_normalization(metadata: Mapping[str, str], path: Path) -> str | None:
    """Input normalization that the metadata of a file give; None where they say nothing.

    Raises
    ------
    FormatError
        When what it says is none that is known.
    """
    text = metadata.get("normalization")
    if text is not None and text not in NORMALIZATIONS:
        raise FormatError(
            path,
            f"its metadata says normalization is {text[:40]!r}, which is not known",
            hint="one of " + ", ".join(NORMALIZATIONS),
        )
    return text


def inputs_for(
    source: ModelFile,
    entry: Entry | None,
    *,
    batch: int | None,
    resolution: int | tuple[int, int] | None,
    seed: int | None,
    image: Path | None,
) -> Inputs:
    """What both models will see: as asked, else as the entry, the file or the variant has it."""
    family, variant = source.recognition.family, source.recognition.variant
    usual = (entry.test_resolution if entry else None) or resolution_of(source)
    size = parse_resolution(resolution or usual or family.default_resolution(variant))
    if image is None:
        return random_inputs(batch, size, seed)
    normalization = (
        (entry.normalization if entry else None)
        or said_normalization(source.reader.metadata, source.reader.path)
        or family.normalization(variant)
    )
    return image_inputs(
        image,
        batch,
        size,
        normalization,
        resize=entry.test_resize if entry else None,
        interpolation=entry.interpolation if entry else None,
    )


def modes_of(family: Family, said: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each function the file may stand for: what its outputs' names add, and all settings.

    One, where every setting is said or has a default; else one for either value of each that is not.
    """
    open_keys = missing_settings(family, said)
    for values in product((False, True), repeat=len(open_keys)):
        chosen = dict(zip(open_keys, values, strict=True))
        label = ", ".join(f"{key} {str(value).lower()}" for key, value in chosen.items())
        yield f" ({label})" if label else "", {**family.default_settings, **said, **chosen}
