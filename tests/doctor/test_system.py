"""The machine and the terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from ckptkit.doctor import system
from ckptkit.doctor.system import examine_machine, examine_terminal


class Terminal(io.StringIO):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO, **environment: str) -> dict[str, tuple[str, str]]:
    return {one.name: (one.verdict, one.said) for one in examine_terminal(stream, environment)}


def test_processors_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(system, "_CONTROL_GROUP", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("500000000\n")
    found = {one.name: one.said for one in examine_machine()}
    assert found["processors"] == "3 of 64"
    assert found["memory"].endswith("500.0 MB granted to this container")
    (tmp_path / "memory.max").write_text("max\n")
    assert "granted" not in {one.name: one.said for one in examine_machine()}["memory"]


@pytest.mark.parametrize(
    ("environment", "colour"),
    [
        ({"TERM": "xterm-256color"}, "colours, TERM=xterm-256color"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "all colours, TERM=xterm"),
        ({"TERM": "dumb"}, "none, for TERM is dumb"),
        ({}, "none, for TERM is not set"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "none, for NO_COLOR is set"),
    ],
)
def test_colours(environment: dict[str, str], colour: str):
    assert told(Terminal(), **environment)["colour"] == ("ok", colour)


@pytest.mark.parametrize(("columns", "verdict"), [("79", "note"), ("80", "ok")])
def test_width(monkeypatch: pytest.MonkeyPatch, columns: str, verdict: str):
    monkeypatch.setenv("COLUMNS", columns)
    assert told(Terminal(), TERM="xterm")["width"][0] == verdict


@pytest.mark.parametrize(("encoding", "verdict"), [("utf-8", "ok"), ("UTF8", "ok"), ("ascii", "note")])
def test_letters(encoding: str, verdict: str):
    assert told(Terminal(encoding), TERM="xterm")["letters"][0] == verdict


def test_a_pipe():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert told(stream) == {  # type: ignore[arg-type]
        "output": ("ok", "no terminal: plain text, no colour"),
        "letters": ("ok", "UTF-8"),
    }
