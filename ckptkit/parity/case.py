"""Two sides, run on the same inputs and compared stage by stage: the engine of every proof.

How a case is made differs: from a checkpoint of a known family (`run`), or from a file that names any two
models (`any_model`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.tensors import Array
from ckptkit.parity.backends import Backend, Given, Ran
from ckptkit.parity.compare import StageComparison, Tolerance, compare
from ckptkit.parity.process import is_room_for_two
from ckptkit.parity.report import Report


@dataclass(frozen=True)
class Compared:
    """Outputs of both sides under common names, in one order of axes."""

    ours: Mapping[str, Array]
    theirs: Mapping[str, Array]
    tolerance: Tolerance
    called: Sequence[str]  # the sides, in reasons


@dataclass(frozen=True, kw_only=True)
class Case(ABC, Generic[Given]):
    """Two sides that are ready to run, and what both will see."""

    name: str
    reference: Backend[Given]
    candidate: Backend[Given]
    tolerance: Tolerance
    notes: Sequence[str] = ()

    @property
    @abstractmethod
    def given(self) -> Given:
        """What both sides see."""

    @abstractmethod
    def in_common(self, reference: Ran, candidate: Ran) -> Compared:
        """Which output is compared with which."""

    @abstractmethod
    def report(
        self, reference: Ran, candidate: Ran, compared: Compared, stages: Sequence[StageComparison]
    ) -> Report:
        """The report of both runs."""

    def run(self, say: Say = say_nothing) -> Report:
        """Run both sides on the same inputs and compare them stage by stage."""
        if is_room_for_two():
            for side in (self.reference, self.candidate):
                side.start(self.given, say)
        reference = self.reference.run(self.given, say)
        candidate = self.candidate.run(self.given, say, reference)
        compared = self.in_common(reference, candidate)
        stages = compare(compared.ours, compared.theirs, compared.tolerance, sides=compared.called)
        return self.report(reference, candidate, compared, stages)
