"""Pages to look into: one file, safe whatever the texts of a registry hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptkit.analysis.plot.page import embedded_json, link, links_of, page, plot_page
from ckptkit.analysis.plot.points import FigureOptions
from ckptkit.base.text import escaped, web_address
from tests.support.browser import Browser, browser
from tests.support.entries import entry_of
from tests.support.pages import HOSTILE, check_page
from tests.support.registries import published


def test_a_page_stands_alone_and_its_policy_fits() -> None:
    text = page(
        "A <title>", "<p>body</p>", style="p { color: red }", script="void 0;", data={"a": "</script>"}
    )
    parsed = check_page(text)
    assert parsed.texts["title"] == ["A <title>"]
    assert parsed.data == {"a": "</script>"}
    assert parsed.of("html") == [{"lang": "en"}]
    assert parsed.of("meta")[0] == {"charset": "utf-8"}


def test_a_dark_page_says_so() -> None:
    assert check_page(page("t", "", style="", script="", dark=True)).of("html")[0]["data-theme"] == "dark"


@pytest.mark.parametrize(
    "text", ["</script>", "<!--", "<script", "]]>", "&lt;", "\u2028", "\U0001f600", '"\\']
)
def test_json_comes_back_and_holds_no_markup(text: str) -> None:
    written = embedded_json({text: [text]})
    shown = {"\u2028": "\\u2028"}.get(text, text)  # a page shows it as a code
    assert json.loads(written) == {shown: [shown]}
    assert not set(written) & set("<>&\u2028")
    assert written.isascii()


def test_text_is_escaped_in_elements_and_attributes() -> None:
    assert escaped("<a href=\"'&", "html") == "&lt;a href=&quot;&#x27;&amp;"


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "s3://b/x", "//a.org"]
)
def test_only_the_web_is_linked(url: str) -> None:
    assert web_address(url) is None
    assert "<a" not in link(url, "file")
    assert escaped(url, "html") in link(url, "file")


def test_a_link() -> None:
    assert link('https://a.org/?a="b"&c', "<f>") == (
        '<a href="https://a.org/?a=&quot;b&quot;&amp;c" rel="noreferrer">&lt;f&gt;</a>'
    )


def test_everything_published_of_an_entry() -> None:
    links = links_of(published()["moganet-s-224"])
    assert [one.name for one in links] == ["file", "file 2", "config", "log", "paper"]
    assert links[-1].url == "https://arxiv.org/abs/2211.03295"
    manual = entry_of(
        {"url": "https://pan.baidu.com/s/1", "manual": True}, "https://a.org/x.tar", paper="a book"
    )
    assert [(one.name, one.url) for one in links_of(manual)] == [
        ("file", "https://a.org/x.tar"),
        ("file 2", "https://pan.baidu.com/s/1"),
    ]


def test_the_templates_stand_in_the_package() -> None:
    import ckptkit

    root = Path(ckptkit.__file__).parent
    for name in (
        "analysis/plot/templates/page.css",
        "analysis/plot/templates/plot.js",
        "cli/templates/list.js",
    ):
        assert (root / name).stat().st_size > 500


ALL = published().find(task="image-classification")
SHOWN = {entry.id for entry in ALL if entry.published_top1 is not None}
ARROW_RIGHT, ENTER, ESCAPE = "\ue014", "\ue007", "\ue00c"


def page_of(entries: list[Any] = ALL, **options: Any) -> str:
    return plot_page(entries, x="params", y="top1", options=FigureOptions(**options))


# The source


def test_it_stands_alone() -> None:
    page = check_page(page_of())
    assert {entry["id"] for entry in page.data["entries"]} == {entry.id for entry in ALL}
    assert page.texts["h1"] == ["MOAT and MogaNet: accuracy and cost"]
    assert "arXiv:2210.01820" in page.texts["p"][0]


def test_the_same_entries_give_the_same_page() -> None:
    assert page_of() == page_of()


def test_its_data_are_the_figures_as_published() -> None:
    entries = {entry["id"]: entry for entry in check_page(page_of()).data["entries"]}
    found = entries["moganet-xt-224"]
    assert [found[key] for key in ("params", "flops", "top1", "top5")] == [2.97e6, 0.8e9, 76.5, 93.4]
    assert found["text"] == {"params": "2.97M", "flops": "0.80G", "top1": "76.5%", "top5": "93.4%"}
    assert entries["moat0-224"]["top5"] is None
    assert entries["moat0-224"]["text"]["top5"] is None
    assert ["Position embedding", "no"] in entries["moat0-224-noposemb"]["facts"]
    assert ["Resolution", "224, trained at 160"] in entries["moganet-s-160-rsba3"]["facts"]


def test_there_is_a_table_for_readers_without_scripts() -> None:
    page = check_page(page_of())
    assert [row[0] for row in page.rows] == [entry.id for entry in ALL]
    assert page.rows[0][:6] == ["moat0-224", "MOAT-0", "27.8M", "5.7B", "83.3%", "–"]
    urls = {source.url for entry in ALL for source in entry.sources}
    assert urls <= set(page.links())


def test_a_title_of_ones_own_and_a_dark_page() -> None:
    page = check_page(page_of(title="<Mine>", dark=True))
    assert page.texts["h1"] == page.texts["title"] == ["<Mine>"]
    assert page.of("html")[0]["data-theme"] == "dark"


def test_hostile_texts_stay_texts() -> None:
    entry = entry_of("https://a.org/'\"<x>.tar", published_params="5M", published_top1=80.0, **HOSTILE)
    page = check_page(page_of([entry]))
    assert page.rows[0][1] == HOSTILE["display_name"]
    (found,) = page.data["entries"]
    assert found["name"] == HOSTILE["display_name"]
    assert not page.of("img") and not page.of("b")


# The browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "plot.html"
    path.write_text(page_of(), encoding="utf-8")
    return path


@pytest.fixture
def opened(chromium: Browser, path: Path) -> Iterator[Browser]:
    """The page, freshly opened; afterwards it must have been quiet and have asked for nothing."""
    chromium.size(1280, 900)
    chromium.open(path)
    yield chromium
    assert chromium.messages() == []
    assert chromium.requests() == [path.as_uri()]


def points(page: Browser) -> list[str]:
    return list(page.run("return [...document.querySelectorAll('.point')].map(p => p.dataset.key)"))


def front(page: Browser) -> list[str]:
    return str(page.run("return document.querySelector('.front').dataset.front")).split()


def expected_front(ids: set[str], cost: str = "params") -> list[str]:
    """By definition: shown entries that no other shown one beats."""
    entries = [entry for entry in ALL if entry.id in ids]
    places = {(getattr(entry, cost), entry.published_top1): entry.id for entry in reversed(entries)}
    return [
        places[place]
        for place in sorted(places)
        if not any(other != place and other[0] <= place[0] and other[1] >= place[1] for other in places)
    ]


def test_every_place_has_a_point_and_the_front_is_right(opened: Browser) -> None:
    assert len(points(opened)) == len({(e.params, e.published_top1) for e in ALL if e.id in SHOWN})
    assert front(opened) == expected_front(SHOWN)
    without = len(ALL) - len(SHOWN)
    assert opened.text("#count") == (
        f"{len(SHOWN)} of {len(ALL)} entries shown; {without} more without a published figure for these axes"
    )


def test_hover_shows_all_figures(opened: Browser) -> None:
    assert opened.run("return document.getElementById('tip').hidden")
    opened.hover('.point[data-key="moganet-b-224"]')
    said = opened.text("#tip")
    for part in ("moganet-b-224", "moganet-b-224-timm", "43.9M", "9.93G", "84.3%", "97%"):
        assert part in said
    opened.hover("h1")
    assert opened.run("return document.getElementById('tip').hidden")


def test_a_family_is_switched_off(opened: Browser) -> None:
    opened.click('input[data-family="MOAT"]')
    moganet = {id for id in SHOWN if id.startswith("moganet")}
    assert set(points(opened)) <= moganet
    assert front(opened) == expected_front(moganet)
    opened.click('input[data-family="MOAT"]')
    assert front(opened) == expected_front(SHOWN)


def test_a_subgroup_is_switched_off(opened: Browser) -> None:
    index = opened.run(
        "return JSON.parse(document.getElementById('data').textContent).series"
        ".findIndex(s => s.words === 'strong, with position embedding')"
    )
    opened.click(f'input[data-series="{index}"]')
    assert "moat0-224" not in points(opened)
    assert "moat0-224-noposemb" in points(opened)
    assert opened.run("return document.querySelector('input[data-family=MOAT]').indeterminate")


def test_search(opened: Browser) -> None:
    opened.type("#find", "rsb a3")
    assert set(points(opened)) == {id for id in SHOWN if id.endswith("rsba3")}
    opened.type("#find", "nothing like it")
    assert points(opened) == []
    assert opened.text("#count") == f"0 of {len(ALL)} entries shown"


def test_other_axes(opened: Browser) -> None:
    opened.run(
        "const x = document.getElementById('x'); x.value = 'flops'; x.dispatchEvent(new Event('change'))"
    )
    assert front(opened) == expected_front(SHOWN, "flops")
    ticks = opened.run("return [...document.querySelectorAll('.tick')].map(t => t.textContent)")
    assert "10B" in ticks
    before = opened.run(
        "return [...document.querySelectorAll('.point')].map(p => p.getAttribute('transform'))"
    )
    opened.click("#log")
    after = opened.run(
        "return [...document.querySelectorAll('.point')].map(p => p.getAttribute('transform'))"
    )
    assert before != after
    opened.click("#pareto")
    assert opened.run("return document.querySelector('.front')") is None


def test_a_click_opens_the_entry(opened: Browser) -> None:
    opened.click('.point[data-key="moat2-384"]')
    said = opened.text("#entry")
    for part in ("MOAT-2", "73.4M", "54.3B", "87.5%", "ImageNet-22K + 1K", "73,422,408 parameters"):
        assert part in said
    links = opened.run("return [...document.querySelectorAll('#entry a')].map(a => a.href)")
    assert [source.url for source in published()["moat2-384"].sources] == links[:2]


def test_the_keyboard_reaches_everything(opened: Browser) -> None:
    opened.run("document.querySelector('.point').focus()")
    order = points(opened)
    opened.press(ARROW_RIGHT)
    assert opened.run("return document.activeElement.dataset.key") == order[1]
    assert order[1] in opened.text("#tip")
    opened.press(ENTER)
    assert order[1] in opened.text("#entry")
    opened.press(ESCAPE)
    assert opened.run("return document.getElementById('entry').hidden")


@pytest.mark.parametrize("width", [1280, 390])
def test_no_label_lies_over_another_or_a_marker(opened: Browser, width: int) -> None:
    opened.size(width, 844)
    opened.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    boxes = opened.run(
        "const of = s => [...document.querySelectorAll(s)].map(e => e.getBoundingClientRect())"
        ".map(r => [r.left, r.top, r.right, r.bottom]);"
        "return [of('.label'), of('.point .mark'), of('svg')[0], document.documentElement.scrollWidth]"
    )
    labels, marks, sheet, page_width = boxes
    assert len(labels) > (25 if width > 1000 else 8)
    assert page_width <= width
    # Letters are lower than the line box that a browser reports.
    slim = [(left + 1, top + 2.5, right - 1, bottom - 2.5) for left, top, right, bottom in labels]
    for index, (left, top, right, bottom) in enumerate(slim):
        assert sheet[0] <= left and right <= sheet[2]
        others = [*slim[:index], *slim[index + 1 :], *((a + 1, b + 1, c - 1, d - 1) for a, b, c, d in marks)]
        for other in others:
            assert not (left < other[2] and other[0] < right and top < other[3] and other[1] < bottom)


def test_dark_where_the_reader_prefers_it(opened: Browser) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert opened.run(colour) == "rgb(255, 255, 255)"
    opened.dark(True)
    try:
        assert opened.run(colour) == "rgb(20, 23, 28)"
    finally:
        opened.dark(False)


def test_hostile_texts_do_nothing(chromium: Browser, tmp_path: Path) -> None:
    entry = entry_of("https://a.org/x.tar", published_params="5M", published_top1=80.0, **HOSTILE)
    path = tmp_path / "hostile.html"
    path.write_text(page_of([entry]), encoding="utf-8")
    chromium.open(path)
    chromium.hover(".point")
    assert HOSTILE["display_name"].split("<", 1)[0] in chromium.text("#tip")
    chromium.click(".point")
    assert chromium.run("return document.querySelector('#entry h2').textContent") == HOSTILE["display_name"]
    assert chromium.run("return window.hurt === undefined")
    assert chromium.messages() == []
