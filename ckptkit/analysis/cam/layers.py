"""Which module of a model makes each stage's output: where captum puts its hooks."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from ckptkit.base.errors import UsageError


@dataclass(frozen=True)
class Pass:
    """What one forward pass showed."""

    logits: Any  # ``(N, classes)``
    layers: dict[str, Any]  # by stage (``stage1`` …), the module that gives the stage's output
    grids: dict[str, tuple[int, int]]  # rows and columns of each stage's map

    @property
    def last(self) -> str:
        """Name of the last stage."""
        return next(reversed(self.layers))


def run_once(model: Any, images: Any) -> Pass:
    """Run a family's PyTorch model and watch which module gives each of its stages' outputs.

    A module makes a stage's output when it returns that very tensor, so no name of any architecture has to be
    known here; where several return it, one inside the other, the outermost is taken.

    ``images``: ``(N, 3, H, W)``.
    """
    import torch

    returned: list[tuple[Any, weakref.ref[Any]]] = []

    def watch(module: Any, _inputs: Any, output: Any) -> None:
        returned.append((module, weakref.ref(output)))  # the map may be freed as in any other forward pass

    hooks = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        with torch.no_grad():
            outputs = dict(model.forward_stages(images))
    finally:
        for hook in hooks:
            hook.remove()
    logits = outputs.pop("logits")
    layers = {
        stage: [module for module, output in returned if output() is value][-1]
        for stage, value in outputs.items()
    }
    grids = {stage: (value.shape[2], value.shape[3]) for stage, value in outputs.items()}
    return Pass(logits, layers, grids)


def find_stage(text: str | int | None, seen: Pass) -> str:
    """Read a stage given by number or name; None is the last.

    >>> seen = Pass(None, {"stage1": None, "stage2": None}, {})
    >>> find_stage(None, seen), find_stage("1", seen), find_stage("stage2", seen)
    ('stage2', 'stage1', 'stage2')
    """
    if text is None:
        return seen.last
    wanted = str(text).strip().lower()
    wanted = f"stage{wanted}" if wanted.isdigit() else wanted
    if wanted not in seen.layers:
        raise UsageError(f"no stage {text!r}", hint=f"this model has stage1 to {seen.last}")
    return wanted
