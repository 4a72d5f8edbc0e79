"""Pages that stand alone: one file, nothing loaded from anywhere, safe whatever the registry's texts hold.

Style and script are inline and named by their hashes in a content security policy that forbids all else, so
that text out of a registry could not run even if it got into the markup; and it cannot: it is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.plot.theme import DARK, LIGHT, Theme
from ckptkit.base.text import arxiv_id, escaped, json_text, web_address

if TYPE_CHECKING:
    from ckptkit.registry import Entry

_TEMPLATES = Path(__file__).parent / "templates"

_PAGE = """<!doctype html>
<html lang="en"{theme}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
{data}<script>{script}</script>
</body>
</html>
"""


def template(name: str, folder: Path = _TEMPLATES) -> str:
    """Return the text of a file of the package."""
    return (folder / name).read_text(encoding="utf-8")


def page(title: str, body: str, *, style: str, script: str, data: Any = None, dark: bool = False) -> str:
    """Return a page."""
    whole_style = "\n" + colours() + template("page.css") + style
    whole_script = "\n" + script
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_hash(whole_style)}'",
            f"script-src '{_hash(whole_script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    embedded = ""
    if data is not None:
        embedded = f'<script type="application/json" id="data">{embedded_json(data)}</script>\n'
    return _PAGE.format(
        theme=' data-theme="dark"' if dark else "",
        policy=policy,
        title=escaped(title, "html"),
        style=whole_style,
        body=body,
        data=embedded,
        script=whole_script,
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded_json(value: Any) -> str:
    r"""Write JSON that may stand in a script element: nothing in it can end the element or open a comment.

    >>> print(embedded_json({"name": "</script><!-- & more"}))
    {"name":"\u003c/script\u003e\u003c!-- \u0026 more"}
    """
    text = json_text(_shown(value), ascii_only=True, compact=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    """The same with every text as it is shown."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, (list, tuple)) else value


def link(url: str, text: str) -> str:
    """Return a link in HTML, or the text alone where the URL is none for a browser: a path, a store's."""
    if web_address(url) is None:
        return f"<span>{escaped(text, 'html')}: {escaped(url, 'html')}</span>"
    return f'<a href="{escaped(url, "html")}" rel="noreferrer">{escaped(text, "html")}</a>'


@dataclass(frozen=True)
class Link:
    """Something published of an entry: what it is, where, and what to know about it."""

    name: str
    url: str
    note: str = ""


def links_of(entry: Entry) -> list[Link]:
    """Return everything published of an entry: its file, configuration, log, paper."""
    sources = sorted(entry.sources, key=lambda source: source.manual)
    found = [
        Link(f"file {index}" if index > 1 else "file", source.url, source.note)
        for index, source in enumerate(sources, start=1)
    ]
    if entry.config_url:
        found.append(Link("config", entry.config_url))
    if entry.log_url:
        found.append(Link("log", entry.log_url))
    if (paper := arxiv_id(entry.paper)) is not None:
        found.append(Link("paper", f"https://arxiv.org/abs/{paper}"))
    return found


def colours() -> str:
    """Return both themes as CSS variables: light, dark where the system or the page says so."""
    dark = _variables(DARK)
    return (
        f":root{{{_variables(LIGHT)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark};color-scheme:dark}}\n"
        f"@media print{{:root,:root[data-theme=dark]{{{_variables(LIGHT)};color-scheme:light}}}}\n"
    )


def _variables(theme: Theme) -> str:
    plain: Sequence[tuple[str, str]] = [
        ("background", theme.background),
        ("text", theme.text),
        ("muted", theme.muted),
        ("grid", theme.grid),
        ("front", theme.front),
        *((f"family-{index}", colour) for index, colour in enumerate(theme.families)),
    ]
    return ";".join(f"--{name}:{colour}" for name, colour in plain)
