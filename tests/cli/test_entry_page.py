"""list --format html: its source, and how it behaves in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.browser import Browser, browser
from tests.support.commands import Runner, cache, runner
from tests.support.pages import HOSTILE, Page, check_page
from tests.support.registries import published

ALL = published()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def listed(run: Runner, *arguments: str | Path) -> Page:
    result = run("list", "--format", "html", *arguments)
    assert result.code == 0
    return check_page(result.out)


def hostile_registry(folder: Path) -> Path:
    entry = {
        "id": "evil",
        "family": "moat",
        "variant": "moat0",
        "layout": "deeplab2",
        "format": "tf",
        "sources": [{"url": "https://a.org/\"'><script>x</script>.tar"}, {"url": "s3://bucket/x.tar"}],
        **HOSTILE,
    }
    path = folder / "evil.yaml"
    path.write_text(yaml.safe_dump({"entries": [entry]}), encoding="utf-8")
    return path


# The source


def test_without_scripts_it_is_a_plain_table(run: Runner) -> None:
    page = listed(run)
    assert [row[0] for row in page.rows] == list(ALL)
    assert page.rows[0][:9] == ["moat0-224", "224", "yes", "ImageNet-1K", "–", "27.8M", "5.7B", "83.3", "–"]
    assert page.texts["h1"] == ["Published checkpoints of MOAT and MogaNet"]
    assert page.of("form")[0]["hidden"] is None, "controls show themselves by script"
    assert "hidden" in page.of("form")[0]


def test_every_source_is_linked(run: Runner) -> None:
    found = set(listed(run).links())
    for entry in ALL.values():
        urls = [source.url for source in entry.sources] + [entry.config_url, entry.log_url]
        assert {url for url in urls if url} <= found


def test_columns_sort_and_filters_are_those_of_the_other_forms(run: Runner) -> None:
    arguments = ("tiny-*", "--no-pos-emb", "--sort", "-params", "--columns", "id,params,url,cached")
    rows = listed(run, *arguments).rows
    expected = run("list", "--format", "csv", *arguments).out.splitlines()[1:]
    assert [row[0] for row in rows] == [line.split(",")[0] for line in expected]
    assert rows[0][:4] == [
        "tiny-moat3-256-noposemb",
        "19.5M",
        ALL["tiny-moat3-256-noposemb"].sources[0].url,
        "no",
    ]
    assert len(rows[0]) == 5, "the columns, and the button"


def test_yes_or_no_filters_for_columns_that_say_both(run: Runner) -> None:
    def flags(page: Page) -> list[str | None]:
        return [select["data-flag"] for select in page.of("select") if "data-flag" in select]

    assert flags(listed(run)) == ["pos-emb"]
    assert flags(listed(run, "--family", "moganet")) == []
    assert flags(listed(run, "--columns", "id,cached,required")) == ["required"]
    cache("moat1-224")
    assert flags(listed(run, "--columns", "id,cached,required")) == ["cached", "required"]


def test_of_nothing_there_is_an_empty_table(run: Runner) -> None:
    page = listed(run, "no*")
    assert page.rows == []
    assert page.texts["h1"] == ["Published checkpoints"]


def test_hostile_texts_stay_texts(run: Runner, tmp_path: Path) -> None:
    page = listed(
        run, "evil", "--registry", hostile_registry(tmp_path), "--columns", "id,name,setting,note,group,url"
    )
    assert page.rows[0][:5] == [
        "evil",
        HOSTILE["display_name"],
        HOSTILE["setting"],
        HOSTILE["note"],
        HOSTILE["group"],
    ]
    assert page.links() == ["https://a.org/\"'><script>x</script>.tar"]


def test_to_a_file(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "list.html"
    result = run("list", "tiny-*", "-o", path)
    assert (result.code, result.out, result.err) == (0, f"{path}\n", "8 entries\n")
    assert path.read_text(encoding="utf-8") == run("list", "tiny-*", "--format", "html").out
    assert run("list", "-o", path).code == 2
    assert len(Page(path.read_text()).rows) == 8
    assert run("list", "-o", path, "--force").code == 0
    assert len(Page(path.read_text()).rows) == len(ALL)
    assert [found.name for found in tmp_path.iterdir()] == ["list.html"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.csv", "csv"),
        ("a.json", "json"),
        ("a.md", "markdown"),
        ("a.HTM", "html"),
        ("a.txt", "table"),
        ("a", "table"),
    ],
)
def test_the_ending_of_a_file_says_the_form(run: Runner, tmp_path: Path, name: str, form: str) -> None:
    assert run("list", "moat0-224", "-o", tmp_path / name).code == 0
    written = (tmp_path / name).read_text(encoding="utf-8")
    assert written == run("list", "moat0-224", "--format", form).out


def test_the_form_that_is_asked_for_wins(run: Runner, tmp_path: Path) -> None:
    assert run("list", "moat0-224", "-o", tmp_path / "a.html", "--json").code == 0
    assert (tmp_path / "a.html").read_text().startswith("[")


def test_a_dry_run_writes_nothing(run: Runner, tmp_path: Path) -> None:
    result = run("list", "tiny-*", "-o", tmp_path / "a.html", "--dry-run")
    assert (result.code, result.out) == (0, "")
    assert "would write 8 entries" in result.err
    assert list(tmp_path.iterdir()) == []


# The browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def path(run: Runner, tmp_path: Path) -> Path:
    path = tmp_path / "list.html"
    assert run("list", "-o", path).code == 0
    return path


@pytest.fixture
def opened(chromium: Browser, path: Path) -> Iterator[Browser]:
    """The page, freshly opened; afterwards it must have been quiet and have asked for nothing."""
    chromium.size(1280, 900)
    chromium.open(path)
    yield chromium
    assert chromium.messages() == []
    assert {url.partition("#")[0] for url in chromium.requests()} == {path.as_uri()}


def shown(page: Browser) -> list[str]:
    return list(
        page.run(
            "return [...document.querySelectorAll('tbody tr:not([hidden]) td.id')].map(c => c.textContent)"
        )
    )


def by_top5(direction: int) -> list[str]:
    """Known figures by value, unknown last, ties in the order of the registry."""
    known = [id for id, entry in ALL.items() if entry.published_top5 is not None]
    unknown = [id for id, entry in ALL.items() if entry.published_top5 is None]
    return [*sorted(known, key=lambda id: direction * float(ALL[id].published_top5 or 0)), *unknown]


def test_a_click_on_a_heading_sorts(opened: Browser) -> None:
    heading = 'th[data-key="top5"]'
    opened.click(f"{heading} button")
    assert shown(opened) == by_top5(1)
    assert opened.run(f"return document.querySelector('{heading}').ariaSort") == "ascending"
    opened.click(f"{heading} button")
    assert shown(opened) == by_top5(-1)
    opened.click(f"{heading} button")
    assert shown(opened) == list(ALL)
    assert opened.run(f"return document.querySelector('{heading}').ariaSort") is None


def test_counts_are_sorted_by_value_and_not_by_letters(opened: Browser) -> None:
    opened.click('th[data-key="flops"] button')
    assert shown(opened) == sorted(ALL, key=lambda id: ALL[id].flops or 0)


def test_typing_filters(opened: Browser) -> None:
    opened.type("#q", "MOAT 512")
    assert shown(opened) == [id for id in ALL if "moat" in id and "512" in id]
    assert opened.text("#count") == "4 of 42 entries"
    opened.click("#reset")
    opened.run("return new Promise(done => setTimeout(done))")
    assert shown(opened) == list(ALL)


def test_family_and_yes_or_no(opened: Browser) -> None:
    choose = "const [id, value] = arguments; const s = document.querySelector(id); s.value = value;"
    choose += "s.dispatchEvent(new Event('input', {bubbles: true}))"
    opened.run(choose, "#family", "moat")
    opened.run(choose, "select[data-flag]", "no")
    assert shown(opened) == [id for id, entry in ALL.items() if entry.pos_emb is False]


def test_the_address_holds_the_choice(opened: Browser, path: Path) -> None:
    opened.type("#q", "deit iii")
    opened.click('th[data-key="params"] button')
    opened.click('th[data-key="params"] button')
    address = str(opened.run("return location.hash"))
    assert address == "#q=deit+iii&sort=-params"
    rows = shown(opened)
    opened.open(path, address)
    assert shown(opened) == rows == ["moganet-t-256-deit3", "moganet-xt-256-deit3"]
    opened.open(path, "#family=nobody&sort=nothing&q=%00")
    assert opened.text("#count") == "0 of 42 entries"
    assert opened.run("return document.getElementById('family').value") == ""


def test_the_button_copies_the_command(opened: Browser) -> None:
    opened.type("#q", "moat2-384-noposemb")
    opened.click("tr:not([hidden]) button.copy")
    assert opened.text("tr:not([hidden]) button.copy") == "copied"
    assert opened.clipboard() == "ckptkit fetch moat2-384-noposemb"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_window(opened: Browser, width: int) -> None:
    opened.size(width, 844)
    wide, table = opened.run(
        "return [document.documentElement.scrollWidth, document.querySelector('.scroll').scrollWidth]"
    )
    assert wide <= width
    if width == 1280:
        assert table <= width, "no scrolling sideways on a desktop"


def test_without_scripts_links_remain(chromium: Browser, path: Path) -> None:
    chromium.without_scripts()
    try:
        chromium.open(path)
        assert chromium.text("tbody tr:last-child td.id") == list(ALL)[-1]
        assert chromium.text("tbody tr td.links a") == "file"
        assert chromium.messages() == []
    finally:
        chromium.without_scripts(False)


def test_hostile_texts_do_nothing(chromium: Browser, run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "evil.html"
    columns = "id,name,setting,note,group"
    result = run("list", "evil", "--registry", hostile_registry(tmp_path), "--columns", columns, "-o", path)
    assert result.code == 0
    chromium.open(path)
    assert (
        chromium.run("return document.querySelectorAll('tbody td')[1].textContent") == HOSTILE["display_name"]
    )
    assert chromium.run("return window.hurt === undefined")
    assert chromium.messages() == []
