"""Which guesses the outputs confirm: where a tensor is changed, they must change.

All outputs agree with the rules as they are. A guess becomes proven where they do not with its tensor turned
or its values reversed, nor with its layer exchanged with another of the same shapes beside it.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

from ckptkit.base.errors import listed
from ckptkit.base.text import counted
from ckptkit.parity.compare import StageComparison
from ckptkit.rules.structure import Match

_CLEARLY = 10
"""How many times the tolerance outputs must move by."""
_SECONDS = 60
_ALL_PAIRS = 6
"""Of so many layers beside each other every two are exchanged; of more, neighbours."""

Run = Callable[[dict[str, Any]], "Sequence[StageComparison] | None"]
"""Run with a change; None where it changes no value."""


@dataclass
class Tested:
    """What a test of every guess found."""

    proven: set[str] = field(default_factory=set)  # tensors of the target
    untested: list[str] = field(default_factory=list)  # the outputs do not depend on their values
    alike: list[str] = field(default_factory=list)  # layers that can be exchanged
    runs: int = 0
    over: bool = False  # the time

    @property
    def in_words(self) -> list[str]:
        """What stays a guess, and why."""
        rest = [f"the time was over after {counted(self.runs, 'change')}"] if self.over else []
        if self.untested:
            rest.append(f"the outputs do not test {listed(self.untested)}")
        if self.alike:
            rest.append(f"the outputs are the same with {listed(self.alike)} exchanged")
        tensors = counted(len(self.proven), "guess")
        return [
            f"{tensors} proven: each change of a tensor moves the outputs by {_CLEARLY} times the tolerance",
            *rest,
        ]


def tested(matches: Iterable[Match], run: Run) -> Tested:
    """Change every guessed tensor in turn."""
    names = [name for match in matches if match.sure == "guessed" for name in match.targets]
    found, until = Tested(), time.monotonic() + _SECONDS

    def moves(change: dict[str, Any]) -> bool | None:
        if time.monotonic() > until:
            found.over = True
            return None
        stages = run(change)
        found.runs += stages is not None
        return None if stages is None else any(map(_moved, stages))

    for name in names:
        if moves({"turn": name}):
            found.proven.add(name)
        elif not found.over:
            found.untested.append(name)
    for one, other in _beside(names):
        pairs = [(f"{one}{leaf}", f"{other}{leaf}") for leaf in _leaves(names, one)]
        if moves({"exchange": pairs}) is False:
            found.alike.append(f"{one} and {other}")
            found.proven -= {name for pair in pairs for name in pair}
    if found.over:  # of what was not exchanged nothing is known
        found.proven.clear()
    return found


def _moved(stage: StageComparison) -> bool:
    figure = stage.relative if stage.limit.relative else stage.max_abs
    return not stage.ok and not figure <= _CLEARLY * stage.limit.value


def _layer(name: str) -> str:
    return re.split("[./](?=[^./]*$)", name)[0]


def _leaves(names: Iterable[str], layer: str) -> list[str]:
    return [name.removeprefix(layer) for name in names if _layer(name) == layer]


def _beside(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Layers below the same module that have tensors of the same kinds."""
    groups: defaultdict[tuple[str, frozenset[str]], list[str]] = defaultdict(list)
    for layer in dict.fromkeys(map(_layer, names)):
        groups[_layer(layer) if _layer(layer) != layer else "", frozenset(_leaves(names, layer))].append(
            layer
        )
    for layers in groups.values():
        yield from combinations(layers, 2) if len(layers) <= _ALL_PAIRS else pairwise(layers)
