"""Fill a built model from a checkpoint, and the record of it that stays with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ckptkit.base.errors import one_of
from ckptkit.base.text import counted
from ckptkit.convert.loading import LoadPlan, Misfit, describe, other_misfits, plan_load, require_complete
from ckptkit.families.base import CANONICAL, Structure
from ckptkit.families.binding import FileFacts
from ckptkit.families.filling import load_state, tensors_of
from ckptkit.families.recognition import Recognition
from ckptkit.formats.base import Copy, Reader, Weights
from ckptkit.rules.language import Table

if TYPE_CHECKING:
    import keras
    import torch

    from ckptkit.base.tensors import Array
    from ckptkit.registry.schema import Entry

    class TorchModel(torch.nn.Module):  # type: ignore[misc]
        """What `create_model` gives in PyTorch, for type checkers."""

        loaded: Loaded
        num_features: int

        def reset_classifier(self, num_classes: int | None) -> None:
            """Give it a new head."""

    class KerasModel(keras.Model):  # type: ignore[misc]
        """The same in Keras; Keras has no types of its own, so its methods are unchecked."""

        loaded: Loaded
        num_features: int

        def reset_classifier(self, num_classes: int | None) -> None:
            """Give it a new head."""


Framework = Literal["torch", "keras", "onnxruntime"]

FRAMEWORKS: tuple[Framework, ...] = ("torch", "keras", "onnxruntime")
_ALIASES = {
    "pytorch": "torch",
    "pt": "torch",
    "tf": "keras",
    "tf2": "keras",
    "tensorflow": "keras",
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
}


def framework_named(text: str) -> Framework:
    """The framework that a user names, by its own name or another one for it.

    >>> framework_named("pytorch"), framework_named("tf")
    ('torch', 'keras')
    """
    return cast(Framework, one_of("framework", text, FRAMEWORKS, _ALIASES))


@dataclass(frozen=True)
class Loaded:
    """What a model was made of: its attribute ``loaded``."""

    variant: str
    settings: Mapping[str, Any]  # every setting as the model has it
    entry: str | None = None  # id of the registry entry it belongs to
    path: Path | None = None  # the checkpoint
    weights: Copy | None = None  # which copy was taken where the file holds both
    tensors: int = 0  # how many were loaded
    # The model's tensors that the file did not fill, by the names of the framework's layout
    initialised: tuple[str, ...] = ()
    misfits: tuple[Misfit, ...] = field(default=(), repr=False)  # why, other than a new head


@dataclass(frozen=True)
class Source:
    """An open checkpoint that a model is filled from."""

    reader: Reader
    found: Recognition
    weights: Weights
    entry: Entry | None
    strict: bool
    allow_missing_bn: bool
    warn: Callable[[str], None]

    def fill(self, model: Any, framework: Framework, structure: Structure, loaded: Loaded) -> Loaded:
        """Fill a model of this structure, and warn of what is not filled; gives the record of it."""
        reader, found = self.reader, self.found
        layout = CANONICAL if framework == "torch" else found.family.keras_layout
        known = FileFacts.of(reader, self.entry)
        plan = plan_load(reader, found, layout, structure, weights=self.weights, known=known)
        if self.strict:
            require_complete(reader, found, plan, allow_missing_bn=self.allow_missing_bn)
        tensors = tensors_of(model)
        fresh = {name: tensors[name].numpy() for name in plan.initialised}
        if framework == "keras" and plan.has_new_head:
            fresh |= _random_kernels(fresh, found.family.table(layout, found.variant, structure))
        load_state(model, {**plan.read(reader), **fresh})
        for sentence in _warnings(plan, found, structure):
            self.warn(f"{reader.path}: {sentence}")
        return replace(
            loaded,
            weights=plan.weights,
            tensors=len(plan.moves),
            initialised=plan.initialised,
            misfits=plan.misfits,
        )


def _random_kernels(fresh: Mapping[str, Array], table: Table) -> dict[str, Array]:
    """Glorot-uniform kernels for a new head in Keras, whose models are zero where nothing is loaded.

    A head of zeros would pass no gradient to the body in the first step.
    """
    import numpy

    random = numpy.random.default_rng()
    kernels = {}
    for row in table.bindings:
        if row.part == "head" and row.external in fresh and len(row.canonical_shape) > 1:
            limit = (6 / sum(row.canonical_shape)) ** 0.5
            kernels[row.external] = random.uniform(-limit, limit, row.external_shape).astype("float32")
    return kernels


def _warnings(plan: LoadPlan, found: Recognition, structure: Structure) -> list[str]:
    sentences = []
    if plan.has_new_head:
        has = found.structure.num_classes
        sentences.append(
            f"the head of {counted(structure.num_classes or 0, 'class')} is new and must be trained: "
            "the file has " + (f"one of {has}" if has else "none")
        )
    if plan.lacks_bn_statistics:
        sentences.append(
            "no BatchNorm moving statistics: mean 0 and variance 1 stand in, predictions are meaningless"
        )
    if misfits := other_misfits(plan, found):
        sentences.append(f"only what fits was loaded: {describe(misfits)}")
    return sentences
