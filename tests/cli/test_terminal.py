"""Every command on a real terminal of 80, 100 and 140 columns: nothing is cut, nothing is too long."""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests.support.examples import commands
from tests.support.terminal import ask_frameworks, in_pipe, on_terminal, raw_on_terminal, screen

ID = "tiny-moat0-256"
WIDTHS = (80, 100, 140)
QUICK = [
    "list",
    "list moganet-xt-*",
    "list --columns id,res,params,setting,pretrain",
    "show moat0-224",
    f"show {ID}",
    "fetch moat0-224 moat3-512 --dry-run --offline",
    f"fetch {ID}",
    f"verify {ID} --deep",
    "verify own.safetensors",
    f"verify {ID} own.safetensors",
    f"inspect {ID} relative_position",
    f"inspect {ID} relative_position --stats --layout torch",
    "inspect own.safetensors --summary",
    f"diff {ID} own.safetensors",
    f"diff {ID} {ID}",
    f"convert {ID} --dry-run",
    f"convert {ID} -o again.safetensors --force",
    f"synth {ID} --dry-run",
    "cache ls",
    f"cache path {ID}",
    f"cache rm {ID} --dry-run",
    "cache verify",
    "registry validate registry.yaml",
    f"import {ID} {ID}.tar.gz --dry-run",
    "doctor --offline",
    "show moat0-223",
    f"fetch moat0-224 --offline --registry {'long-name-' * 9}.yaml",
    "frobnicate",
    "--help",
    *(f"{command} --help" for command in commands()),
]
FRAMEWORKS = [
    f"parity {ID} --synthetic --resolution 64",
    "profile --all",
    f"profile {ID}",
    f"predict {ID} picture.png --synthetic",
    f"cam {ID} picture.png -o heat.png --synthetic --force --compare methods",
    f"export {ID} --to onnx -o model.onnx --dry-run",
]
WITHOUT_JSON = re.compile(
    r"--help|^(?:list|doctor|frobnicate)|long-name|moat0-223|own\.safetensors$|-o again"
)
"""Commands whose --json has more than their table, or nothing."""
WHOLE = re.compile(r"[0-9a-f]{40,}|(?:https?|file)://\S+|[A-Za-z]\w*(?:[-./]\w+){2,}")
"""Hashes, addresses, ids, names of tensors and files."""
OTHERWISE = re.compile(r"--help$|^list$|^list mog|^doctor")
"""Commands that have other words for a narrow terminal, or remarks on it."""
CHANGING = re.compile(r"^\d\d:\d\d$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache with one entry, and files beside it."""
    place = tmp_path_factory.mktemp("terminal")
    environment = {"CKPTKIT_HOME": str(place / "home"), "CKPTKIT_TRUST": str(place / "ckptkit.lock")}
    lines = [f"synth {ID}", f"import {ID} {ID}.tar.gz", f"convert {ID} -o own.safetensors"]
    done = on_terminal([line.split() for line in lines], 80, place, environment)
    assert [code for code, _ in done] == [0, 0, 0], done
    (place / "registry.yaml").write_text("entries: []\n")
    ask_frameworks(place)
    return place, environment


def _rendered(folder, lines):
    place, environment = folder
    words = [line.split() for line in lines]
    return {
        (line, width): shown
        for width in WIDTHS
        for line, shown in zip(lines, on_terminal(words, width, place, environment), strict=True)
    }


@pytest.fixture(scope="module")
def quick(folder):
    return _rendered(folder, QUICK)


@pytest.fixture(scope="module")
def frameworks(folder):
    for package in ("torch", "tensorflow", "captum"):
        pytest.importorskip(package)
    from tests.support.showground import picture

    picture(1).save(folder[0] / "picture.png")
    return _rendered(folder, FRAMEWORKS)


CASES = [
    *(pytest.param("quick", line, width) for line in QUICK for width in WIDTHS),
    *(
        pytest.param("frameworks", line, width, marks=pytest.mark.slow)
        for line in FRAMEWORKS
        for width in WIDTHS
    ),
]


@pytest.mark.parametrize(("group", "line", "width"), CASES)
def test_nothing_is_too_long_and_nothing_is_cut(group, line, width, request):
    code, lines = request.getfixturevalue(group)[line, width]
    assert "Traceback" not in "\n".join(lines) and code in {0, 1, 2, 3, 4, 5}, lines
    too_long = [one for one in lines if len(one) > width and max(map(len, one.split())) + 12 < width]
    assert too_long == []
    cut = [one for one in lines if "…" in one and re.search(r"\w…\s", one) and not line.endswith("--help")]
    assert cut == []


def _scalars(value):
    if isinstance(value, dict):
        return [one for each in value.items() for part in each for one in _scalars(part)]
    return [one for part in value for one in _scalars(part)] if isinstance(value, list) else [str(value)]


@pytest.fixture(scope="module")
def piped(folder):
    """What the quick commands print in a pipe, and their JSON."""
    place, environment = folder
    lines = [line for line in QUICK if not line.endswith("--help")]
    with_json = [line for line in QUICK if not WITHOUT_JSON.search(line)]
    plain = in_pipe([line.split() for line in lines], place, environment)
    values = in_pipe([[*line.split(), "--json"] for line in with_json], place, environment, errors=False)
    return dict(zip(lines, plain, strict=True)), dict(zip(with_json, values, strict=True))


@pytest.mark.parametrize("line", [line for line in QUICK if not OTHERWISE.search(line)])
def test_no_word_is_torn(line, quick, piped):
    """Each word on the terminal is a word that a pipe gets, where nothing is broken."""
    known = {word for text in piped[0][line].splitlines() for word in text.split()}
    for width in WIDTHS:
        shown = [one for one in quick[line, width][1] if not one.startswith("too wide for this terminal")]
        words = {word for one in shown for word in one.split() if word.strip("─\\")}
        assert {word for word in words - known if not CHANGING.search(word)} == set()


@pytest.mark.parametrize("line", [line for line in QUICK if not WITHOUT_JSON.search(line)])
def test_what_a_terminal_shows_of_the_json_it_shows_whole(line, quick, piped):
    """A word that begins like one of the JSON's ids, names, hashes or addresses is all of it."""
    known = {word for text in _scalars(json.loads(piped[1][line])) for word in WHOLE.findall(text)}
    for width in WIDTHS:
        shown = quick[line, width][1]
        words = {word.strip("(),;:'\"") for one in shown for word in one.split()} - known
        missing = [whole for whole in known if not any(whole in one for one in shown)]
        torn = {word for whole in missing for word in words if len(word) > 6 and whole.startswith(f"{word}")}
        assert {
            word for word in torn if not any(word in one and word != one for one in known - {*missing})
        } == set()


def test_a_silence_of_more_than_a_second_shows_what_goes_on(tmp_path):
    program = (
        "import time\nfrom ckptkit.cli.output import Output\noutput = Output()\n"
        "with output.waiting():\n    output.note('loading a model …')\n    time.sleep(1.3)\n"
        "    output.text('a')\n"
        "    time.sleep(1.3)\n"
    )
    written = raw_on_terminal([sys.executable, "-c", program], 80, tmp_path)
    assert re.search(r"\r\x1b\[2K\S loading a model\r.*\S loading a model, 1 s\r", written, re.DOTALL)
    assert "working" in written.partition("a\r\n")[2]
    assert screen(written) == ["a", ""]


def test_a_silence_is_seen_while_a_library_writes_nowhere(tmp_path):
    program = (
        "import os, sys, time\nfrom ckptkit.cli.output import Output\noutput = Output()\n"
        "with output.waiting():\n"
        "    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)\n"
        "    os.dup2(nowhere, 2)\n    time.sleep(1.6)\n    os.dup2(terminal, 2)\n    output.text('a')\n"
    )
    written = raw_on_terminal([sys.executable, "-c", program], 80, tmp_path)
    assert "working, 1 s" in written.partition("a\r\n")[0]
    assert screen(written) == ["a", ""]
