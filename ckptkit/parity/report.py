"""What a parity run found, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ckptkit.parity.comparison import INPUT, StageComparison, TopAgreement, finite_or_none, is_logits
from ckptkit.parity.inputs import Inputs

Framework = Literal["keras", "torch", "onnxruntime"]
Backend = Literal["keras", "onnxruntime"]
"""What PyTorch is compared with."""

FRAMEWORK_NAMES: Mapping[Framework, str] = {"keras": "Keras", "torch": "PyTorch", "onnxruntime": "ONNX"}


@dataclass(frozen=True)
class Side:
    """One framework's part.

    Parameters
    ----------
    framework : {"keras", "torch", "onnxruntime"}
    versions : str
        ``tensorflow 2.21.0, keras 3.15.0``.
    reads : str
        What the model was filled from, in words.
    format, layout, dtype : str
        Of that file.
    settings : mapping
        Behaviour settings that the model was built with.
    seconds : float
        Building, loading and the forward pass.
    """

    framework: Framework
    versions: str
    reads: str
    format: str
    layout: str
    dtype: str
    settings: Mapping[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "settings": dict(self.settings), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class ParityReport:
    """Both models' outputs compared.

    Parameters
    ----------
    name : str
        Registry id, path, or variant.
    family, variant : str
    pos_emb : bool
    num_classes : int or None
        None for a headless file, which is compared on its stages only.
    source : str
        Path of the checkpoint.
    synthetic : bool
        Whether the weights are made by recipe.
    weights : str or None
        ``ema`` or ``raw`` where the source holds both, else None.
    reference : {"keras", "torch"}
        The side that reads the source; figures are relative to its outputs.
    sides : (Side, Side)
        Keras', then PyTorch's; or PyTorch's, then ONNX Runtime's.
    inputs : Inputs
    precision : str
        What the conversion rounded the weights to; ``float32`` where it only moved bytes.
    stages : tuple of StageComparison
        ``stage1`` … ``stage5``, ``logits``; before them ``input`` where a picture was prepared: by Pillow
        and by each framework alone, the two that lie furthest apart.
    top : TopAgreement or None
        None without a head.
    notes : tuple of str
        What a reader must know to judge the result.
    seconds : float
        Of the whole run.
    """

    name: str
    family: str
    variant: str
    pos_emb: bool | None
    num_classes: int | None
    source: str
    synthetic: bool
    weights: str | None
    reference: Framework
    sides: tuple[Side, Side]
    inputs: Inputs
    precision: str
    stages: tuple[StageComparison, ...]
    top: TopAgreement | None
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        """Whether every output agrees."""
        return bool(self.stages) and all(stage.ok for stage in self.stages)

    @property
    def first_departure(self) -> str | None:
        """Name of the first output that does not agree; None when all do."""
        return next((stage.name for stage in self.stages if not stage.ok), None)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Behaviour settings of the reference."""
        return next(side for side in self.sides if side.framework == self.reference).settings

    @property
    def backend(self) -> Backend:
        """What PyTorch was compared with."""
        return "onnxruntime" if any(side.framework == "onnxruntime" for side in self.sides) else "keras"

    @property
    def title(self) -> str:
        """Its name among several reports: one checkpoint may have one with each backend."""
        return self.name if self.backend == "keras" else f"{self.name} with {self.backend}"

    @property
    def verdict(self) -> str:
        """The result in one line."""
        of = f"{self.title} ({'synthetic weights, ' if self.synthetic else ''}{self._precision_in_words})"
        departed = next((stage for stage in self.stages if not stage.ok), None)
        if departed is not None:
            alone = is_logits(departed.name) or departed.name == INPUT
            where = f"on the {departed.name}" if alone else f"from {departed.name} on"
            return f"DISAGREE {where}: {of}: {departed.reason}"
        outputs = [stage for stage in self.stages if stage.name != INPUT]
        worst = max(outputs, key=lambda stage: stage.relative)
        prepared = " and the picture's preparation" if len(outputs) < len(self.stages) else ""
        return (
            f"agree: {of}: all {len(outputs)} outputs{prepared} within tolerance, "
            f"largest relative difference {worst.relative:.1e} ({worst.name})"
        )

    @property
    def _precision_in_words(self) -> str:
        return "float32" if self.precision == "float32" else f"rounded to {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without NaN or infinity."""
        return {
            "name": self.name,
            "with": self.backend,
            "ok": self.ok,
            "verdict": self.verdict,
            "first_departure": self.first_departure,
            "family": self.family,
            "variant": self.variant,
            "pos_emb": self.pos_emb,
            "num_classes": self.num_classes,
            "source": self.source,
            "synthetic": self.synthetic,
            "weights": self.weights,
            "reference": self.reference,
            "sides": {side.framework: side.to_json() for side in self.sides},
            "settings": dict(self.settings),
            "inputs": {**vars(self.inputs), "image": str(self.inputs.image) if self.inputs.image else None},
            "precision": self.precision,
            "stages": [stage.to_json() for stage in self.stages],
            "top": vars(self.top).copy() if self.top else None,
            "notes": list(self.notes),
            "seconds": finite_or_none(round(self.seconds, 3)),
        }

    def to_junit(self) -> str:
        """Return a JUnit XML document with one test case per output."""
        from ckptkit.parity.junit import junit_document

        return junit_document([self])


@dataclass(frozen=True)
class Failure:
    """A target that could not be compared.

    Parameters
    ----------
    name : str
    error : str
        One line.
    kind : str
        Class of the error.
    """

    name: str
    error: str
    kind: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with ``ok`` false as in a report."""
        return {"name": self.name, "ok": False, "error": self.error, "kind": self.kind}
