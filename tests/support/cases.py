"""Case files for tests; their sides run in this process, where a framework is imported once for all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptkit.parity import any_model
from ckptkit.parity.child import MODELS, Model
from ckptkit.parity.sides import SideProcess

SHAPE = "{shape: [2, 16, 16, 3], layout: NHWC, seed: 7}"
STAGES = ["stem", "norm", "mix", "attention"]


class Here(SideProcess):
    """A side without a process of its own."""

    def _start(self) -> None:
        self._model: Model | None = None

    def _receive(self) -> dict[str, Any]:
        self._model = MODELS[self.text.framework](self._description())
        return self._model.answer({"do": "open"})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._model is not None
        return json.loads(json.dumps(self._model.answer(json.loads(json.dumps(request)))))

    @property
    def ended(self) -> bool:
        return False

    def end(self) -> None:
        pass


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
                if name.partition(".")[0] in ("nets", "port"):
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
