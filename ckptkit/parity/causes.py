"""Why a stage departs: one change at a time, each tried before it is named.

A framework lists the changes that make sense for what ran between the last stage that agrees and the first
that departs (`causes_torch`, `causes_keras`); here they are tried. A cause is a change with which the stage
agrees with the other side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ckptkit.base.tensors import Array

EPSILONS = (1e-5, 1e-3, 1e-6, 1e-12, 1e-7)
"""Those of the frameworks' and of published models' normalizations."""

SLOPES = (0.01, 0.2, 0.1, 0.3, 0.05)
"""Usual ones of a leaky ReLU: PyTorch's, Keras' and those of published models."""


@dataclass(frozen=True)
class Change:
    """A change of one side that may make it agree with the other."""

    kind: str  # such as "epsilon"
    what: str  # in words: "epsilon 0.001 instead of 1e-05 in layer1.bn"
    made: Callable[[], AbstractContextManager[Any]]  # in force while the block lasts


def tried(
    changes: Iterable[Change],
    run: Callable[[], Array | None],
    request: Mapping[str, Any],
) -> dict[str, Any]:
    """Run with each change until the time is over; those with which the stage agrees, the closest first."""
    import numpy

    with numpy.load(request["expected"], allow_pickle=False) as file:
        expected = file["expected"].astype(numpy.float64)
    scale = float(numpy.abs(expected).max()) or 1.0
    began = time.monotonic()
    found: list[dict[str, Any]] = []
    count = 0
    for change in changes:
        if time.monotonic() - began > request["seconds"]:
            break
        count += 1
        try:
            with change.made():
                output = run()
        except Exception:  # noqa: S112 (a change that the model cannot run with is not the cause)
            continue
        if output is None or output.shape != expected.shape or not numpy.isfinite(output).all():
            continue
        difference = float(numpy.abs(output.astype(numpy.float64) - expected).max())
        figure = difference / scale if request["relative"] else difference
        if figure <= request["limit"]:
            found.append({"kind": change.kind, "what": change.what, "figure": figure})
    return {"tried": count, "found": sorted(found, key=lambda one: one["figure"])}


def same_pads(
    sizes: Iterable[int], kernel: Iterable[int], strides: Iterable[int], dilation: Iterable[int]
) -> list[tuple[int, int]]:
    """What TensorFlow's SAME adds before and after each axis.

    >>> same_pads([32, 7], [3, 3], [2, 2], [1, 1])
    [(0, 1), (1, 1)]
    """
    pads = []
    for size, width, stride, step in zip(sizes, kernel, strides, dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * step + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


def symmetric_pads(kernel: Iterable[int], dilation: Iterable[int]) -> list[tuple[int, int]]:
    """What PyTorch models add on both sides of each axis, as a rule.

    >>> symmetric_pads([3, 7], [1, 1])
    [(1, 1), (3, 3)]
    """
    halves = [step * (width - 1) // 2 for width, step in zip(kernel, dilation, strict=True)]
    return [(half, half) for half in halves]


Pads = Sequence[tuple[int, int]]


def other_paddings(own: Pads, same: Pads, symmetric: Pads) -> Iterator[tuple[str, Pads]]:
    """Other ways to pad, in words.

    >>> for words, pads in other_paddings([(1, 1)], same_pads([8], [3], [2], [1]), [(1, 1)]):
    ...     print(words, pads)
    SAME padding (more after than before) instead of symmetric [(0, 1)]
    padding before only instead of symmetric [(1, 0)]
    padding after only instead of symmetric [(0, 2)]
    padding before only instead of symmetric [(2, 0)]
    """
    ways: list[tuple[str, str, Pads]] = [
        ("SAME padding (more after than before)", "SAME", same),
        ("symmetric padding", "symmetric", symmetric),
    ]
    for total in ([before + after for before, after in pads] for pads in (same, own)):
        ways.append(("padding after only", "after only", [(0, one) for one in total]))
        ways.append(("padding before only", "before only", [(one, 0) for one in total]))
    own = [(before, after) for before, after in own]
    now = next((short for _, short, pads in ways if pads == own), "its own")
    known: list[Pads] = [own]
    for words, _, pads in ways:
        if pads not in known:
            known.append(pads)
            yield f"{words} instead of {now}", pads


def other_epsilons(own: float) -> Iterator[float]:
    """Usual ones that a layer does not have."""
    return (epsilon for epsilon in EPSILONS if abs(epsilon - own) > own * 1e-6)


def other_slopes(own: float) -> Iterator[float]:
    """Usual ones that a leaky ReLU does not have."""
    return (slope for slope in SLOPES if abs(slope - own) > 1e-6)


def spelled(number: float) -> str:
    """An epsilon as people write it.

    >>> spelled(0.001), spelled(1e-05)
    ('1e-3', '1e-5')
    """
    mantissa, _, exponent = f"{number:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
