"""Running a model on PyTorch's meta device, where tensors have shapes and no elements, and counting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ckptkit.families.flops import Call, Convention, Shape


@dataclass
class Count:
    """Calls of one operation in one module, and their multiply-adds."""

    calls: int = 0
    products: Fraction = Fraction(0)  # of convolutions, linear layers and attention products alone
    multiply_adds: Fraction = Fraction(0)  # all of them by the convention

    def add(self, other: Count) -> None:
        """Add another count to this one."""
        self.calls += other.calls
        self.products += other.products
        self.multiply_adds += other.multiply_adds


@dataclass
class Tally:
    """What a forward pass of one image costs."""

    # By module, as ``named_modules`` calls it, and operation: what runs in the module itself and in none of
    # the modules within it
    counts: dict[tuple[str, str], Count]
    uncounted: dict[str, int]  # calls of operations that the convention says nothing about

    def record(self, module: str, call: Call, convention: Convention) -> None:
        """Add one call."""
        cost = convention.cost(call)
        if cost is None:
            self.uncounted[call.operation] = self.uncounted.get(call.operation, 0) + 1
            return
        if cost[1]:
            self.counts.setdefault((module, call.operation), Count()).add(Count(1, *cost))


def count_forward(model: Any, size: tuple[int, int], convention: Convention) -> Tally:
    """Run a model of this package once and count."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    tally = Tally({}, {})
    path = [""]

    class Counting(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed here
        """Sees every operation after PyTorch has broken it down to its basic ones."""

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operation(*args, **(kwargs or {}))
            tally.record(path[-1], _call(operation, args, result), convention)
            return result

    # Without gradients rather than in inference mode, which hands over layers that are not broken down yet.
    with torch.no_grad(), _following(model, path), Counting():
        image = torch.empty((1, 3, *size), device="meta")
        outputs = model.forward_stages(image)
        if convention.activates_stage_outputs:
            outputs.pop("logits", None)
            for output in outputs.values():
                torch.nn.functional.gelu(output)
    return tally


@contextmanager
def _following(model: Any, path: list[str]) -> Iterator[None]:
    """Keep the name of the module that runs at the end of ``path``."""
    handles = []
    for name, module in model.named_modules():
        if name:
            handles += [
                module.register_forward_pre_hook(lambda *_, name=name: path.append(name)),
                module.register_forward_hook(lambda *_: _leave(path)),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leave(path: list[str]) -> None:
    """Drop the last module; a hook that returned it would replace the module's result."""
    path.pop()


def _call(operation: Any, args: tuple[Any, ...], result: Any) -> Call:
    """Describe a call by its shapes."""
    first = result[0] if isinstance(result, (tuple, list)) else result
    name = operation.overloadpacket.__name__
    return Call(
        operation=name.rstrip("_"),
        inputs=tuple(_shape(arg) for arg in args),
        arguments=tuple(None if _shape(arg) is not None else arg for arg in args),
        output=_shape(first) or (),
    )


def _shape(value: Any) -> Shape | None:
    """Shape of a tensor, None of anything else."""
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)
