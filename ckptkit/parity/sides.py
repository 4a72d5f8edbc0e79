"""The sides of a case file as backends: a child process for each, or a recording.

A side's code is the user's: a crash is a message with the last lines that its process wrote, and one that
does not answer in time is ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptkit.base.errors import FormatError, UsageError, require_installed
from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.tensors import Array
from ckptkit.formats.detect import open_reader
from ckptkit.parity.align import is_output
from ckptkit.parity.backends import Backend, Pass, Ran
from ckptkit.parity.case_file import CaseFile, SideText, Which
from ckptkit.parity.child import MOST, in_order
from ckptkit.parity.process import ChildProcess
from ckptkit.parity.report import FRAMEWORK_NAMES, Framework, Side

_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "keras": ("tensorflow",),
    "tensorflow": ("tensorflow",),
    "onnx": ("onnx", "onnxruntime"),
    "jax": ("jax",),
    "recorded": (),
}
_INPUTS = "inputs/"
"""What a recording's inputs begin with."""
_MAKE_ONE = "save stages and output by numpy.savez, or with the recorder: record --emit FILE"
_SECONDS_FOR_CAUSES = 120


@dataclass(frozen=True)
class CaseInputs:
    """What both sides see."""

    arrays: Mapping[str, Array]
    layouts: Mapping[str, str | None]
    path: Path  # the arrays as a recording, for the children


@dataclass(frozen=True)
class CaseRan(Ran):
    """What a side gave, in its own order of axes."""

    told: Sequence[str] = ()  # names of its results
    layout: str | None = None
    notes: Sequence[str] = ()
    seen: Sequence[str] = ()  # names of all stages that ran


def recording_name(side: str) -> str:
    """What a side's recording is called where only its folder is given."""
    return f"{side}.npz"


def require_packages(text: SideText) -> None:
    """Look for a side's framework without importing it."""
    require_installed(_PACKAGES[text.framework], f"a side of {text.framework}")


def _framework(text: SideText) -> Framework:
    return "onnxruntime" if text.framework == "onnx" else text.framework


class SideProcess(ChildProcess, Backend[CaseInputs]):
    """A side in a process of its own, which starts at once and ends with `end`."""

    def __init__(self, which: Which, case: CaseFile, scratch: Path) -> None:
        self.which, self.text, self.case = which, case.side(which), case
        text = self.text
        self.framework = _framework(text)
        self.outputs = scratch / f"{which}.npz"
        self._expected = scratch / f"{which}-expected.npz"
        self._wanted = case.wanted(which)
        self._began = time.perf_counter()
        self._versions: str | None = None
        self._inputs: CaseInputs | None = None
        self._runs = False
        called = f"{which} ({text.framework})"
        log = scratch / f"{which}.log"
        super().__init__(called, log, "ckptkit.parity.child", case.folder, case.text.timeout)
        self.send(self._description())

    def _description(self) -> dict[str, Any]:
        text, case = self.text, self.case
        paths = {key: getattr(text, key) for key in ("checkpoint", "rules")}
        return {
            **text.model_dump(),
            **{key: str(case.place(value)) if value else None for key, value in paths.items()},
            "folder": str(case.folder),
            "wanted": self._wanted,
            "do": "open",
        }

    def start(self, given: CaseInputs, /, say: Say = say_nothing) -> None:
        """Have the model run."""
        say(f"running the {self.which} side by {FRAMEWORK_NAMES[self.framework]}")
        self._begin(given)

    def run(self, given: CaseInputs, /, say: Say = say_nothing, reference: Ran | None = None) -> CaseRan:
        """Run the model once."""
        if not self._runs:
            self.start(given, say)
        self._finish()
        ran = read_recording(self.outputs, self.text.layout)
        side = Side(
            framework=self.framework,
            versions=self._versions or "",
            reads=self.reads,
            format=self.text.framework,
            layout=ran.layout or "",
            dtype="float32",
            settings={},
            seconds=time.perf_counter() - self._began,
        )
        return CaseRan({"": Pass(ran.arrays)}, side, ran.told, ran.layout, seen=self._seen)

    def record(self, given: CaseInputs) -> None:
        """Have the inputs and outputs written to a file."""
        self._begin(given, keep_inputs=True)
        self._finish()

    def _begin(self, given: CaseInputs, *, keep_inputs: bool = False) -> None:
        self._inputs = given
        self._opened()
        self.send(
            {
                "do": "run",
                "inputs": str(given.path),
                "layouts": dict(given.layouts),
                "wanted": self._wanted,
                "outputs": str(self.outputs),
                "keep_inputs": keep_inputs,
            }
        )
        self._runs = True

    def _finish(self) -> None:
        self._runs = False
        self._seen = self.receive()["names"]

    def _opened(self) -> None:
        """Wait until the model is built, which it is once."""
        if self._versions is None:
            self._versions = self.receive()["versions"]

    def fill(self, checkpoint: Path, rules: Path, state_dict: str | None = None) -> None:
        """Fill the model anew, by rules."""
        self._opened()
        self.ask({"do": "fill", "checkpoint": str(checkpoint), "rules": str(rules), "state_dict": state_dict})

    def change(self, change: Mapping[str, Any]) -> bool:
        """Change what it was filled with; tells whether any value is another one."""
        return bool(self.ask({"do": "change", **change})["changed"])

    @property
    def reads(self) -> str:
        """What fills the model, in words."""
        rules = f" by {self.text.rules}" if self.text.rules else ""
        model = str(self.text.model)
        return f"{model}, {self.text.checkpoint}{rules}" if self.text.checkpoint else model

    def explain(
        self, after: str | None, until: str, expected: Array, limit: float, *, relative: bool
    ) -> dict[str, Any]:
        """Try changes of what runs after one stage until another agrees with what was expected of it."""
        import numpy

        assert self._inputs is not None
        numpy.savez(self._expected, expected=expected)
        return self.ask(
            {
                "do": "explain",
                "inputs": str(self._inputs.path),
                "layouts": dict(self._inputs.layouts),
                "after": after,
                "until": until,
                "expected": str(self._expected),
                "limit": limit,
                "relative": relative,
                "seconds": min(_SECONDS_FOR_CAUSES, self.case.text.timeout / 2),
            }
        )


class RecordedSide(Backend[CaseInputs]):
    """Outputs that were recorded elsewhere, by ``ckptkit record`` or the recorder that it emits."""

    framework = "recorded"

    def __init__(self, which: Which, case: CaseFile) -> None:
        self.which, self.text = which, case.side(which)
        self.path = case.place(self.text.recording)

    def run(self, given: CaseInputs, /, say: Say = say_nothing, reference: Ran | None = None) -> CaseRan:
        """Read it; recorded inputs must be those of the case."""
        began = time.perf_counter()
        recording = read_recording(self.path, self.text.layout)
        notes = [] if recording.inputs else [f"{self.path.name} does not say of which inputs it was recorded"]
        if recording.inputs:
            self._refuse_other_inputs(given, recording)
        side = Side(
            framework="recorded",
            versions="made elsewhere",
            reads=self.text.recording,
            format="npz",
            layout=recording.layout or "",
            dtype="float32",
            settings={},
            seconds=time.perf_counter() - began,
        )
        return CaseRan({"": Pass(recording.arrays)}, side, recording.told, recording.layout, notes)

    def _refuse_other_inputs(self, given: CaseInputs, recording: Recording) -> None:
        import numpy

        last = recording.layout != "NCHW"
        theirs = list(recording.inputs.values())
        for place, (name, array) in enumerate(given.arrays.items()):
            wanted = in_order(array, given.layouts.get(name), last)
            found = recording.inputs.get(name, theirs[place] if place < len(theirs) else None)
            if found is None or found.shape != wanted.shape or not numpy.allclose(found, wanted, 1e-5, 1e-6):
                raise UsageError(
                    f"{self.path} was recorded of another {name} than the case has",
                    hint="take the recording's: give the input file: and key: instead of a shape",
                )


@dataclass(frozen=True)
class Recording:
    """What a file of outputs holds."""

    arrays: dict[str, Array]  # in the order of execution
    inputs: dict[str, Array]
    told: tuple[str, ...]  # names of the model's results
    layout: str | None


def read_recording(path: Path, layout: str | None = None) -> Recording:
    """Read a recording strictly: it may come from anywhere."""
    import numpy

    with open_reader(path) as reader:
        if reader.format != "npz":
            raise FormatError(path, "not a recording", hint=_MAKE_ONE)
        if sum(spec.nbytes for spec in reader.specs.values()) > MOST:
            raise FormatError(path, f"holds more than {MOST >> 30} GB")
        names = [
            name for name, spec in reader.specs.items() if spec.dtype.kind in ("float", "int", "uint", "bool")
        ]
        arrays = {name: numpy.array(reader.read(name)) for name in names}
        told = _texts(reader.metadata.get("outputs"))
        layout = layout or reader.metadata.get("layout")
    stages = {name: array for name, array in arrays.items() if not name.startswith(_INPUTS)}
    if not stages:
        raise FormatError(path, "not a recording: it holds no outputs", hint=_MAKE_ONE)
    inputs = {name.removeprefix(_INPUTS): one for name, one in arrays.items() if name.startswith(_INPUTS)}
    told = told or tuple(name for name in stages if is_output(name, ()))
    return Recording(stages, inputs, told, layout)


def _texts(value: str | None) -> tuple[str, ...]:
    try:
        found = json.loads(value or "[]")
    except ValueError:
        return ()
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()
