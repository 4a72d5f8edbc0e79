"""The documentation: the site builds without a warning; pages and pictures show what the code does today."""

from __future__ import annotations

import copy
import html
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

import ckptkit
from ckptkit import _version
from ckptkit.base import errors
from ckptkit.base.axes import OPS
from ckptkit.cli import app
from ckptkit.cli.output import ExitCode
from ckptkit.formats.builtin import BUILT_IN
from ckptkit.parity.case_file import CaseText, InputText, SideText
from tests.conftest import REPOSITORY
from tests.support.browser import browser
from tests.support.examples import commands, printed_examples
from tests.support.preloaded import FRAMEWORKS, preloaded

DOCS = REPOSITORY / "docs"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as CI builds it: a warning is a fault."""
    pytest.importorskip("material", reason="mkdocs-material is of the extra dev")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def text_of(page: Path) -> str:
    """What a page shows."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_command_and_option_has_its_place_in_the_reference(site):
    shown = text_of(site / "reference" / "commands" / "index.html")
    for command in commands():
        assert f"ckptkit {command}" in shown
    for option in ("--strip-prefix", "--require-checksum", "--junit", "--offline", "--older-than"):
        assert option in shown


def test_every_public_name_has_its_docstring_in_the_reference(site):
    shown = text_of(site / "reference" / "python" / "index.html")
    for name in ckptkit.__all__:
        if callable(getattr(ckptkit, name)):
            first = (getattr(ckptkit, name).__doc__ or "").strip().splitlines()[0].replace("`", "")
            assert first.split("  ")[0] in shown, name


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("exit-codes", [str(int(code)) for code in ExitCode]),
        ("formats", [word for format in BUILT_IN.values() for word in (format.name, *format.endings)]),
        ("rules", [*OPS, "source", "target", "ignore", "sizes"]),
        ("cases", [*CaseText.model_fields, *SideText.model_fields, *InputText.model_fields, "recorder"]),
        ("registry", ["attn_force_fp32", "pool_size", "published_top1", "hash_provenance", "sources"]),
    ],
)
def test_the_reference_is_whole(site, page, words):
    shown = text_of(site / "reference" / page / "index.html")
    assert [word for word in words if word not in shown] == []


def test_no_page_loads_anything_from_elsewhere(site):
    loading = re.compile(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"?(https?://[^\s\">]+)")
    found = {
        url for page in site.rglob("*.html") for url in loading.findall(page.read_text(encoding="utf-8"))
    }
    assert {url for url in found if not url.startswith("https://example.org/")} == set()


@pytest.fixture
def with_more_of_everything(monkeypatch):
    """What later work may add: a command, a format, a function, an error, an operation, a field."""

    def melt(what: str) -> None:
        """Melt a checkpoint."""

    melt.__module__ = melt.__qualname__ = "melted"
    root = app.load_commands()
    command = copy.copy(root.commands["demo"])
    option = copy.copy(next(param for param in command.params if getattr(param, "is_flag", False)))
    option.opts, option.help = ["--slowly"], "Take *all* day."
    command.help, command.params = "Melt it.\n\nExamples:\n  ckptkit melt --slowly", [option]
    monkeypatch.setitem(root.commands, "melt", command)
    names = [*root.list_commands(None), "melt"]
    monkeypatch.setattr(root, "list_commands", lambda context: names)
    monkeypatch.setattr(app, "load_commands", lambda: root)
    slab = type("Slab", (type(BUILT_IN["npz"]),), {"name": "slab", "endings": (".slab",)})
    monkeypatch.setitem(BUILT_IN, "slab", slab())
    monkeypatch.setattr(ckptkit, "melt", melt, raising=False)
    monkeypatch.setattr(ckptkit, "__all__", [*ckptkit.__all__, "melt"])
    error = type("MeltedError", (errors.CkptkitError,), {"__doc__": "It has melted."})
    monkeypatch.setattr(errors, "MeltedError", error, raising=False)
    monkeypatch.setitem(OPS, "melted", replace(OPS["conv"], name="melted"))


def test_what_is_added_to_the_code_appears_in_the_reference_by_itself(with_more_of_everything):
    script = runpy.run_path(str(DOCS / "reference.py"))
    parts = {name: make() for name, make in script["PARTS"].items()}
    assert "## ckptkit melt\n" in parts["commands"] and "$ ckptkit melt --slowly" in parts["commands"]
    assert r"| `--slowly` | Take \*all\* day. |" in parts["commands"]
    assert "--slowly" in script["manual_page"]().replace("\\-", "-")
    assert "::: melted.melted\n" in parts["python"]
    assert "| `slab` | `.slab` |" in parts["formats"]
    assert "| `MeltedError` | It has melted. |" in parts["errors"]
    assert "| `melted` |" in parts["operations"]


def test_every_exit_code_has_its_meaning():
    meanings = runpy.run_path(str(DOCS / "reference.py"))["EXIT_CODES"]
    assert set(meanings) == set(ExitCode)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing about what was asked for."""


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served, on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=site)) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


def nav(part):
    """Every page of the navigation, as its address ends."""
    if isinstance(part, str):
        return [part.removesuffix("index.md").replace(".md", "/")]
    return [page for one in (part if isinstance(part, list) else part.values()) for page in nav(one)]


NAV = nav(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
WIDE = {"design/": "a drawing in characters", "contributing/": "commands as CI has them, a line each"}
"""Pages with code that is wider than a page, and why; readers scroll it sideways."""
SEEN = """
const shows = one => one.getClientRects().length > 0;
const code = [...document.querySelectorAll("article pre code")];
return {
  words: document.querySelector("article").innerText.length,
  heading: document.querySelector("h1").innerText,
  entries: [...document.querySelectorAll(".md-nav--primary a.md-nav__link")].length,
  room: document.documentElement.clientWidth,
  needed: document.documentElement.scrollWidth,
  cut: code.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.textContent),
  broken: [...document.querySelectorAll("article td code")].filter(one => !/\\s/.test(one.textContent)
    && one.getClientRects().length > 1).map(one => one.textContent),
  pictures: [...document.querySelectorAll("article img")].filter(shows)
    .map(one => [one.src.split("/").pop(), one.naturalWidth, one.width]),
  ground: getComputedStyle(document.body).backgroundColor,
};
"""


def in_scheme(chromium, dark):
    """What the page shows once it has followed the system into a scheme, without being loaded again."""
    chromium.dark(dark)
    end = time.monotonic() + 20
    while True:
        seen = chromium.run(SEEN)
        brightness = max(map(int, re.findall(r"\d+", seen["ground"])[:3]))
        if (brightness < 80) is dark:
            return seen
        assert time.monotonic() < end
        time.sleep(0.02)


QUICK = {
    *("", "tutorial/", "howto/evaluate/", "design/"),
    *("reference/commands/", "reference/python/", "reference/formats/"),
}
"""Pages with pictures, code, tables, drawings and docstrings; a page takes a browser two seconds."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page in QUICK else pytest.mark.slow) for page in NAV]
)
def test_a_page_in_a_browser(page, address, chromium):
    chromium.open(address + page)
    for width, dark in ((1280, False), (390, True)):
        chromium.size(width, 900)
        seen = in_scheme(chromium, dark)
        assert seen["words"] > 200 and seen["heading"] and seen["entries"] >= len(NAV)
        assert seen["needed"] <= seen["room"]  # no page scrolls sideways
        assert seen["broken"] == []
        if width == 1280 and page not in WIDE:
            assert seen["cut"] == []
        for name, natural, shown in seen["pictures"]:
            assert natural > 0 and 200 < shown <= width, name
            assert not name.endswith("#only-light" if dark else "#only-dark"), name
    assert chromium.messages() == []
    assert [url for url in chromium.requests() if not url.startswith(address)] == []


@pytest.mark.parametrize("page", ["", "howto/evaluate/"])
def test_each_scheme_has_pictures_of_its_own(page, address, chromium):
    chromium.size(1280, 900)
    chromium.open(address + page)
    light, dark = ({name for name, *_ in in_scheme(chromium, one)["pictures"]} for one in (False, True))
    assert len(light) == len(dark) and light ^ dark


def test_the_search_finds_an_option_and_a_copied_command_has_no_prompt(address, chromium):
    chromium.size(1280, 900)
    chromium.open(address + "tutorial/")
    chromium.click("#__code_1 .md-code__button")
    copied = chromium.clipboard()
    assert copied.startswith("ckptkit list") and "$" not in copied
    chromium.click(".md-search__input")
    chromium.type(".md-search__input", "--require-checksum")
    end = time.monotonic() + 20
    while "--require-checksum" not in chromium.run(
        "return document.querySelector('.md-search-result').innerText"
    ):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert chromium.messages() == []


def test_the_manual_page_is_todays():
    script = runpy.run_path(str(DOCS / "reference.py"))
    assert (DOCS / "ckptkit.1").read_text(encoding="utf-8") == script["manual_page"](), (
        "run: python docs/reference.py > docs/ckptkit.1"
    )


def test_the_manual_page_has_no_fault_and_fits_a_terminal():
    program = shutil.which("groff") or pytest.skip("no groff")
    text = (DOCS / "ckptkit.1").read_text(encoding="utf-8")
    assert text.isascii()
    done = subprocess.run(
        [program, "-man", "-ww", "-Tutf8", "-rLL=80n", "-P-cbou"],
        input=text.encode(),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    shown = done.stdout.decode()
    assert max(map(len, shown.splitlines())) <= 80
    assert "'moat*-384*'" in shown and "[PATTERN…]" in shown
    typed = " ".join(shown.replace("\\\n", " ").split()).replace("\u2010", "-").replace("\u2212", "-")
    for command in commands():
        for example in printed_examples(command):
            assert " ".join(example.line.split()) in typed


NUMBERS = re.compile(r"\d\.\d+e-\d+|\d\.\d{9}|\d+\.\d+\.\d+(?:\+\w+)?|stage\d\)$")
"""What another processor, or another release of a framework, prints otherwise."""


def shown(lines: list[str]) -> list[str]:
    """Lines without what differs between machines, blanks and rules of tables."""
    plain = [re.sub(r"[\s\u2500]+", "", NUMBERS.sub("N", line.replace("\xa0", " "))) for line in lines]
    return [line for line in plain if line]


def lines_of(svg: str) -> list[str]:
    """What a picture of a terminal shows, line by line."""
    placed: dict[float, dict[float, str]] = {}
    for x, y, text in re.findall(r'<text [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', svg):
        placed.setdefault(float(y), {})[float(x)] = html.unescape(text)
    return ["".join(parts[x] for x in sorted(parts)) for _, parts in sorted(placed.items())]


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is Unix's")
@pytest.mark.parametrize("name", ["list", "parity"])
def test_a_picture_shows_all_that_its_command_prints_today(name, monkeypatch):
    if name == "parity":
        pytest.importorskip("torch")
        pytest.importorskip("tensorflow")
    script = runpy.run_path(str(DOCS / "pictures" / "make.py"))
    if name == "parity":
        printing = script["printed_on_a_terminal"].__globals__
        monkeypatch.setitem(printing, "subprocess", preloaded(*FRAMEWORKS))
    command, width = script["TERMINALS"][name]
    printed = re.sub(r"\x1b\[[\d;]*m", "", script["printed_on_a_terminal"](command, width))
    expected = shown([f"$ {command}", *printed.splitlines()])
    for end in script["THEMES"]:
        kept = (DOCS / "pictures" / f"{name}{end}.svg").read_text(encoding="utf-8")
        assert shown(lines_of(kept)) == expected, f"python docs/pictures/make.py {name}"


@pytest.mark.parametrize("name", ["accuracy.svg", "accuracy-dark.svg"])
def test_the_plot_names_what_is_drawn_today(name, tmp_path):
    pytest.importorskip("matplotlib")
    runpy.run_path(str(DOCS / "pictures" / "make.py"))["DRAWINGS"][name](tmp_path / name)
    kept, today = ((folder / name).read_text(encoding="utf-8") for folder in (DOCS / "pictures", tmp_path))
    words = re.compile(r'<!-- (.+?) -->|<g id="(label|marker)')
    assert "Pareto front" in kept and words.findall(kept) == words.findall(today)
    assert ("#14171c" in kept) is name.endswith("-dark.svg")


@pytest.mark.parametrize("file", [*DOCS.rglob("*.md"), REPOSITORY / "README.md"], ids=lambda file: file.name)
def test_every_picture_and_file_that_a_page_names_is_there(file):
    text = file.read_text(encoding="utf-8")
    named = re.findall(r'\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"', text)
    from_root = runpy.run_path(str(DOCS / "reference.py"))["FROM_ROOT"]
    for target in ((one or other).partition("#")[0] for one, other in named):
        if not target or "://" in target:
            continue
        path = (file.parent / target).resolve()
        inside = path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else ""
        assert path.exists() or inside in from_root, target


def test_the_readme_is_short_and_says_what_it_is_first():
    lines = README.splitlines()
    assert len(lines) <= 150
    before = README.index("```sh")
    assert README.index("reads, converts and *proves*") < README.index("<picture>") < before
    assert "could not be opened" in README


def test_the_readme_counts_the_registry_as_it_is():
    text = " ".join(README.split())
    rows = yaml.safe_load((REPOSITORY / "registry.yaml").read_text(encoding="utf-8"))["entries"]
    tasks = [row.get("task", "image-classification") for row in rows]
    birds = sum(row.get("layout") == "birder" for row in rows)
    checksums = sum(bool(row.get("sha256") or row.get("md5")) for row in rows)
    taggers = tasks.count("multi-label-tagging")
    classifiers = tasks.count("image-classification")
    assert f"{len(rows)} in all" in text
    assert f"{classifiers - birds} ImageNet classifiers, {birds} bird classifiers" in text
    assert f"{taggers} tagger" in text
    assert f"{len(rows) - classifiers - taggers} detectors, segmenters and pose models" in text
    assert f"For {checksums} of the {len(rows)} the registry has a checksum" in text


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == _version.__version__
    assert cited["repository-code"] == _version.REPOSITORY.removesuffix(".git")
    assert {"cff-version", "title", "message", "authors"} <= set(cited)
