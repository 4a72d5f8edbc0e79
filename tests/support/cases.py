"""Case files for tests; their sides run in this process, where a framework is imported once for all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptkit.parity import any_model
from ckptkit.parity.child import MODELS
from ckptkit.parity.sides import SideProcess

SHAPE = "{shape: [2, 16, 16, 3], layout: NHWC, seed: 7}"
STAGES = ["stem", "norm", "mix", "attention"]


class AnswersHere:
    """In place of a process: what it would answer is computed in the test's."""

    models: Mapping[str, Callable[[dict[str, Any]], Any]] = MODELS
    ended = False

    def _start(self, *_: Any) -> None:
        self._model: Any = None

    def send(self, request: dict[str, Any]) -> None:
        self._request = json.loads(json.dumps(request))

    def receive(self) -> Any:
        self._model = self._model or self.models[self._request["framework"]](self._request)
        return json.loads(json.dumps(self._model.answer(self._request)))

    def end(self) -> None:
        pass


class Here(AnswersHere, SideProcess):
    """A side of a case file."""


@contextmanager
def sides_run_here() -> Iterator[None]:
    """Run sides in this process; modules of their folders are forgotten."""
    modules, places = set(sys.modules), list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(any_model, "SideProcess", Here)
        try:
            yield
        finally:
            sys.path[:] = places
            for name in set(sys.modules) - modules:
                if name.partition(".")[0] in ("nets", "keras_nets", "port"):
                    del sys.modules[name]


def write_case(
    folder: Path, left: str, right: str, *, stages: Any = STAGES, inputs: str = SHAPE, **more: Any
) -> Path:
    """Write a case file."""
    lines = [f"left: {left}", f"right: {right}", f"inputs: {inputs}"]
    lines += [f"stages: {json.dumps(stages)}"] if stages else []
    lines += [f"{key}: {json.dumps(value)}" for key, value in more.items()]
    path = folder / "some.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def side(framework: str, model: str | None, **more: str | bool) -> str:
    """One side of a case file."""
    return json.dumps({"framework": framework, "model": model, **more})
