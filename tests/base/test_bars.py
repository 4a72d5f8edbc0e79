"""Bars are drawn where somebody sees them, and nowhere else."""

from __future__ import annotations

import io
import sys
import types

import pytest

from ckptkit.base import bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), None], ids=["a pipe", "no stream"])
def test_nobody_sees_it(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with bars.seen_progress("reading", 10) as advance:
        advance(10)
    assert stream is None or stream.getvalue() == ""


def test_a_terminal_shows_a_bar_that_goes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with bars.seen_progress("tiny-moat0-256\x1b[2J", 10_000_000) as advance:
        advance(5_000_000)
    drawn = sys.stderr.getvalue()
    assert "tiny-moat0-256\\x1b[2J" in drawn and "5.0/10.0 MB" in drawn
    assert drawn.endswith("\x1b[2K")


@pytest.fixture
def notebook(monkeypatch):
    """Stands in for a Jupyter kernel; gives the HTML that is shown."""
    shown = []
    display = types.SimpleNamespace(
        display=lambda thing, display_id: (
            shown.append(thing._repr_html_())
            or types.SimpleNamespace(update=lambda thing: shown.append(thing._repr_html_()))
        )
    )
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_notebook_shows_html(notebook):
    with bars.seen_progress("<b>", 2_000) as advance:
        advance(1_000)  # too soon to be drawn
        advance(1_000)
    assert notebook == [
        '<progress max="2000" value="0"></progress> &lt;b&gt; 0 B of 2.0 kB',
        '<progress max="2000" value="2000"></progress> &lt;b&gt; 2.0 kB of 2.0 kB',
    ]


def test_a_notebook_shows_a_length_that_is_not_known(notebook):
    with bars.seen_progress("images", None, unit="images") as advance:
        advance(3)
    assert notebook == ["<progress></progress> images 0 images"]
