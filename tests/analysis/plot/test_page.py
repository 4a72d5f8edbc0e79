"""The frame of every page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptkit.analysis.plot.page import embedded_json, link, links_of, page
from ckptkit.base.text import escaped, web_address
from tests.support.entries import entry_of
from tests.support.pages import check_page
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
        "analysis/plotting/templates/page.css",
        "analysis/plotting/templates/plot.js",
        "cli/templates/list.js",
    ):
        assert (root / name).stat().st_size > 500
