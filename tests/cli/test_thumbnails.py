"""Small pictures on terminals: which way each terminal gets them, and what exactly is sent."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest

from ckptkit.cli.predict_commands import choose_renderer, fitted
from tests.support.pictures import drawn

image = pytest.importorskip("PIL.Image")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "UTF-8"

    def isatty(self) -> bool:
        return True


class PlainTerminal(Terminal):
    encoding = "ANSI_X3.4-1968"


def kind(stream=None, columns=80, **environment):
    """What would be sent for a small picture, by how it begins."""
    renderer = choose_renderer(stream or Terminal(), environment, columns)
    if renderer is None:
        return None
    text = renderer(image.new("RGB", (8, 8), (255, 0, 0)))
    beginnings = {"\x1b_G": "kitty", "\x1b]1337;": "iterm", "\x1b[38;2;": "true colour", "\x1b[38;5;": "256"}
    return next(name for start, name in beginnings.items() if text.startswith(start))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app", "COLORTERM": "truecolor"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        # Inside a multiplexer the variables of the terminal around it are still there, but it draws itself.
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "256"),
        ({"TERM": "screen", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-256color", "TMUX": "/tmp/x,1,0", "TERM_PROGRAM": "WezTerm"}, "256"),
        (
            {"TERM": "xterm-256color", "STY": "1.x", "LC_TERMINAL": "iTerm2", "COLORTERM": "24bit"},
            "true colour",
        ),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "true colour"),
        ({"WT_SESSION": "c0ffee"}, "true colour"),
        ({"TERM": "xterm-256color"}, "256"),
        ({"TERM": "xterm"}, None),
        ({"TERM": "linux"}, None),
        ({}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "256"),
    ],
)
def test_which_terminal_gets_what(environment, expected):
    assert kind(**environment) == expected


def test_never_in_a_pipe_and_no_blocks_without_their_letters():
    assert kind(io.StringIO(), TERM="xterm-kitty") is None
    assert kind(PlainTerminal(), TERM="xterm-256color") is None
    assert kind(PlainTerminal(), TERM="xterm-kitty") == "kitty"


def sent(picture, columns=80, **environment):
    return choose_renderer(Terminal(), environment, columns)(picture)


TRUE = {"TERM": "xterm", "COLORTERM": "truecolor"}


def test_half_blocks_hold_two_pixels_each():
    picture = image.fromarray(
        np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [1, 2, 3]], [[4, 5, 6], [7, 8, 9]]], np.uint8)
    )
    assert fitted(2, 3, 2) == (2, 3)
    assert sent(picture, columns=3, **TRUE).split("\n") == [
        "\x1b[38;2;10;20;30;48;2;70;80;90m▀\x1b[38;2;40;50;60;48;2;1;2;3m▀\x1b[0m",
        "\x1b[38;2;4;5;6m▀\x1b[38;2;7;8;9m▀\x1b[0m",
    ]


@pytest.mark.parametrize(
    ("rgb", "number"),
    [
        # xterm's table: 16 + 36 r + 6 g + b with levels 0, 95, 135, 175, 215, 255; greys 8 + 10 i from 232.
        ((0, 0, 0), 16),
        ((255, 255, 255), 231),
        ((255, 0, 0), 196),
        ((95, 135, 175), 67),
        ((100, 130, 180), 67),
        ((128, 128, 128), 244),
        ((10, 10, 10), 232),
    ],
)
def test_256_colours(rgb, number):
    text = sent(image.new("RGB", (4, 4), rgb), TERM="xterm-256color")
    assert set(re.findall(r"[34]8;5;(\d+)", text)) == {str(number)}


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (5000, 1), (1, 5000), (1, 1), (224, 224)])
@pytest.mark.parametrize("columns", [2, 20, 200])
def test_it_fits_and_every_line_is_as_long(size, columns):
    lines = sent(image.new("RGB", size), columns=columns, **TRUE).split("\n")
    widths = {line.count("▀") for line in lines}
    assert len(widths) == 1
    assert 1 <= widths.pop() <= min(36, columns - 1)
    assert 1 <= len(lines) <= 14
    assert all(line.endswith("\x1b[0m") for line in lines)


def test_proportions_are_kept():
    assert fitted(300, 200, 36) == (36, 24)
    assert fitted(200, 300, 36) == (19, 28)


def test_kittys_protocol():
    """Control data in the first piece only, pieces of at most 4,096 characters, the last one marked."""
    picture = drawn(640, 480)
    pieces = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", sent(picture, TERM="xterm-kitty"))
    assert len(pieces) > 1
    assert pieces[0][0] == "a=T,f=100,q=2,c=36,r=14,m=1"
    assert [control for control, _ in pieces[1:]] == ["m=1"] * (len(pieces) - 2) + ["m=0"]
    assert all(len(payload) == 4096 for _, payload in pieces[:-1])
    png = image.open(io.BytesIO(base64.b64decode("".join(payload for _, payload in pieces), validate=True)))
    assert png.format == "PNG"
    assert max(png.size) <= 360
    assert png.width / png.height == pytest.approx(4 / 3, rel=0.02)


def test_a_small_picture_is_one_piece():
    text = sent(image.new("RGB", (8, 8)), TERM="xterm-kitty")
    assert text.startswith("\x1b_Ga=T,f=100,q=2,c=28,r=14,m=0;")
    assert text.count("\x1b_G") == 1


def test_iterms_protocol():
    text = sent(drawn(640, 480), TERM="xterm", TERM_PROGRAM="iTerm.app")
    found = re.fullmatch("\x1b]1337;File=([^:]*):([^\x07]*)\x07", text)
    assert found is not None
    facts = dict(fact.split("=") for fact in found[1].split(";"))
    content = base64.b64decode(found[2], validate=True)
    assert facts == {
        "inline": "1",
        "size": str(len(content)),
        "width": "36",
        "height": "14",
        "preserveAspectRatio": "1",
    }
    assert image.open(io.BytesIO(content)).format == "PNG"


def test_the_picture_itself_stays_as_it_is():
    picture = drawn(640, 480)
    before = picture.tobytes()
    sent(picture, TERM="xterm-kitty")
    sent(picture, **TRUE)
    assert (picture.size, picture.tobytes()) == ((640, 480), before)
