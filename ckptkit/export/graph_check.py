"""A written graph set against the PyTorch model it was made of, by the comparison of ``parity``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptkit.base.tensors import Array
from ckptkit.parity.comparison import LOGITS, TOLERANCES, StageComparison, compare
from ckptkit.parity.forward import run_torch
from ckptkit.parity.inputs import Inputs, random_inputs

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource

_BATCH = 3
"""Odd, and another than the exporter sees."""


@dataclass(frozen=True)
class Reference:
    """What the PyTorch model gives."""

    inputs: Inputs
    outputs: dict[str, Array]  # channels last


@dataclass(frozen=True)
class GraphCheck:
    """Outcome of a comparison."""

    backend: str  # what ran the graph, with its version
    inputs: Inputs
    together: tuple[StageComparison, ...]  # all inputs as one batch, and the first one by itself
    alone: tuple[StageComparison, ...]

    @property
    def ok(self) -> bool:
        """Whether every output agrees in both."""
        return bool(self.together) and all(output.ok for output in (*self.together, *self.alone))

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        for outputs, where in ((self.together, str(self.inputs)), (self.alone, "one input alone")):
            for output in outputs:
                if not output.ok:
                    return f"{self.backend} DISAGREES with PyTorch at {output.name}, {where}: {output.reason}"
        worst = max((*self.together, *self.alone), key=lambda output: output.relative)
        names = ", ".join(output.name for output in self.together)
        return (
            f"{self.backend} agrees with PyTorch on {self.inputs}, and on one alone: {names}; "
            f"largest relative difference {worst.relative:.1e} ({worst.name})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "backend": self.backend,
            "inputs": str(self.inputs),
            "batch": [output.to_json() for output in self.together],
            "alone": [output.to_json() for output in self.alone],
        }


def reference_of(source: ModelSource, model: Any) -> Reference:
    """Run the PyTorch model on seeded inputs of its source's resolution."""
    inputs = random_inputs(_BATCH, source.preprocessing.size, None)
    return Reference(inputs, run_torch(model, inputs.array()))


def check_graph(
    reference: Reference, run: Callable[[Array], dict[str, Array]], *, features: bool, backend: str
) -> GraphCheck:
    """Compare what a graph gives."""
    images = reference.inputs.array()
    wanted = {name for name in reference.outputs if not (features and name == LOGITS)}

    required = wanted & {LOGITS} or wanted  # beside logits a graph need not give the stages

    def compared(count: int) -> tuple[StageComparison, ...]:
        found = run(images[:count])
        names = wanted & found.keys() | required
        ours = {name: output[:count] for name, output in reference.outputs.items() if name in names}
        theirs = {name: found[name] for name in ours if name in found}
        return compare(ours, theirs, TOLERANCES["float32"], sides=("PyTorch", backend.split(maxsplit=1)[0]))

    return GraphCheck(backend, reference.inputs, compared(len(images)), compared(1))
