"""Telling synthetic weights from trained ones, whatever file they lie in by now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckptkit.families.base import require_recognition
from ckptkit.families.binding import wanted_copy
from ckptkit.formats.detect import open_reader
from ckptkit.synth import Synthetic

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.formats.base import Reader

_ROUNDING = 2.0**-7
"""Relative difference that bfloat16 leaves between a number and itself."""


def known_as_synthetic(source: ModelSource) -> ModelSource:
    """Return the source, marked as synthetic where its first bias has the values of the recipe.

    A synthetic file does not tell: it is shaped as the published ones are, and `ckptkit.synth` writes them
    for mirrors, too. What leaves the house as somebody's model must say it all the same.

    Raises
    ------
    CkptkitError
        The source is damaged.
    """
    if source.synthetic:
        return source
    entry = source.entry
    with open_reader(source.located.path, weights=wanted_copy(source.weights, entry)) as reader:
        return replace(source, synthetic=True) if _has_recipe(source, reader) else source


def _has_recipe(source: ModelSource, reader: Reader) -> bool:
    import numpy

    stand_in = Synthetic(source.variant)
    first = next(
        row for row in stand_in.table.bindings if row.canonical.endswith(".bias") and row.part == "body"
    )
    table = require_recognition(reader.path, reader.specs, variant=source.variant).table
    held = next(row for row in table.bindings if row.canonical == first.canonical)
    name = next((one for one in (held.external, *held.aliases) if one in reader.specs), None)
    if name is None or reader.specs[name].shape != first.external_shape:
        return False
    recipe = next(tensor for tensor in stand_in.tensors() if tensor.spec.name == first.external).make()
    found = numpy.asarray(reader.read(name), dtype=numpy.float32)
    return bool(numpy.allclose(found, recipe, rtol=_ROUNDING, atol=0))
