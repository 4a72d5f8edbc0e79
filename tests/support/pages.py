"""Reading a page as a browser would: what it loads, what it holds, and whether its policy lets it run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

_LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href", "ping"}


class Page(HTMLParser):
    """One parsed page.

    Attributes
    ----------
    elements : list of (name, attributes)
    texts : dict of str to list of str
        Text of each kind of element, in order.
    rows : list of list of str
        Cells of the body of its first table.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "input", "img", "br"}:
            self._open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "tr" and "tbody" in self._open:
            self.rows.append([])
        if tag == "td" and "tbody" in self._open:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data
        if "td" in self._open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def data(self) -> Any:
        """What the script is given."""
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text, re.DOTALL)
        assert found is not None
        return json.loads(found[1])

    def links(self) -> list[str]:
        """Addresses a reader can go to."""
        return [str(attributes["href"]) for attributes in self.of("a")]

    def loaded(self) -> list[str]:
        """Everything a browser would fetch by itself."""
        found = [
            str(value)
            for _, attributes in self.elements
            for key, value in attributes.items()
            if key in _LOADING
        ]
        found += [str(one["href"]) for one in self.of("link") + self.of("base")]
        found += re.findall(r"url\([^)]*\)|@import[^;]*", "".join(self.texts["style"]))
        return found

    def inline(self) -> list[str]:
        """Attributes that run or style by themselves, which the policy forbids."""
        return [
            key
            for _, attributes in self.elements
            for key in attributes
            if key.startswith("on") or key == "style"
        ]

    def policy(self) -> dict[str, str]:
        """The content security policy, by directive."""
        (content,) = [
            str(one["content"])
            for one in self.of("meta")
            if one.get("http-equiv") == "Content-Security-Policy"
        ]
        return dict(part.strip().partition(" ")[::2] for part in content.split(";"))


def sha256_source(text: str) -> str:
    """How a policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def check_page(text: str) -> Page:
    """Return the parsed page after making sure that it stands alone."""
    page = Page(text)
    assert page.loaded() == ["data:,"], "only the empty icon"
    assert page.inline() == []
    policy = page.policy()
    assert policy["default-src"] == "'none'"
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert policy["style-src"] == sha256_source(style)
    assert policy["script-src"] == sha256_source(script)
    assert len(page.of("script")) == (2 if 'id="data"' in text else 1)
    return page


HOSTILE = {
    "display_name": '</script><script>window.hurt = 1</script><img src="x" onerror="window.hurt = 2"><!--',
    "setting": "</td></table><script>window.hurt = 3</script>",
    "note": "'\"><svg onload='window.hurt = 4'> ${window.hurt = 5} \u2028 ]]> -->",
    "group": "</style><b>bold</b>",
}
"""Texts of a registry that try to get out of where they are put."""
