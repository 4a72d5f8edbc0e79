"""Each tensor's way from source to target, and all of them: what carrying a conversion out needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ckptkit.base.tensors import Array, TensorSpec
from ckptkit.families.binding import Ignored
from ckptkit.rules.language import IDENTITY, Binding

Resize: TypeAlias = "Callable[[Array, tuple[int, int]], Array]"
"""Takes a canonical tensor and the rows and columns wanted, its last axes."""


@dataclass(frozen=True)
class Move:
    """One tensor's way from source to target.

    Parameters
    ----------
    source : str
        Name in the source file.
    target : TensorSpec
        Name, dtype and shape in the target file.
    inward, outward : Binding
        The tensor's rows in the source's table and in the target's.
    resize : callable, optional
        Makes the target's values of the source's where their sizes differ; takes and gives canonical axis
        order. It alone makes a copy.
    """

    source: str
    target: TensorSpec
    inward: Binding
    outward: Binding
    resize: Resize | None = None

    @property
    def op(self) -> str:
        """What happens to the axes, for people."""
        if self.resize is not None:
            return f"resize to {'x'.join(map(str, self.outward.canonical_shape[-2:]))}"
        if self.inward.op == self.outward.op:
            return IDENTITY.name
        steps = [op.name for op in (self.inward.op, self.outward.op.inverse) if not op.is_identity]
        return " ∘ ".join(reversed(steps)) or IDENTITY.name

    def apply(self, array: Array) -> Array:
        """View of the source tensor in the target's axis order; a copy only where it is resized."""
        if self.inward.op == self.outward.op and self.resize is None:
            return array
        canonical = self.inward.op.to_canonical(array, self.inward.canonical_shape)
        if self.resize is not None:
            rows, columns = self.outward.canonical_shape[-2:]
            canonical = self.resize(canonical, (rows, columns))
        return self.outward.op.to_external(canonical, self.outward.external_shape)


@dataclass(frozen=True)
class TensorPlan:
    """What a conversion will do to each tensor, decided before anything is written; of any model.

    Parameters
    ----------
    shared : mapping of str to str
        Target tensors that are not written because they are the very same as another one, and which that is;
        only where the container can say so (``torch``).
    also : mapping of str to str
        What else is in the source and is no tensor of the model, in a few words each.
    """

    source: Path
    source_format: str
    to: str
    layout: str
    weights: str | None
    moves: tuple[Move, ...]
    ignored: tuple[Ignored, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]
    max_shard_size: int | None = None
    shared: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, str] = field(default_factory=dict)

    @property
    def way(self) -> str:
        """From what to what, for people."""
        return f"{self.source_format} → {self.to}/{self.layout}"

    @property
    def subject(self) -> str:
        """What the file was taken for, for people."""
        return "any model"

    @property
    def specs(self) -> list[TensorSpec]:
        """Specs of the target's tensors, in the architecture's order."""
        return [move.target for move in self.moves]

    @property
    def left_out(self) -> dict[str, str]:
        """Tensors of the source that a rule leaves out, and which rule and why."""
        return {one.name: one.why for one in self.ignored}

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data in the target."""
        return sum(spec.nbytes for spec in self.specs if spec.name not in self.shared)
