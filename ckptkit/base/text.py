r"""One sink for foreign text: from a file, a registry, a server, a name.

`escaped` is the one way from there to a terminal or into a document; each target has one function in one
table. None of them leaves anything in a text that a terminal obeys, that hides or turns what is shown, or
that the target takes for more than text. A line that is escaped once stays as it is when it is escaped again.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import logging

Target = Literal["line", "paragraph", "figure", "html", "xml", "markdown", "code", "csv", "yaml", "shell"]

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, DEL, C1, what turns the direction of writing, line separators, half surrogates: no part of any name."""

_LONGEST_DRAWN = 200

_STRAY = re.compile(
    "(?!(?<=[\u2600-\u27bf\U0001f000-\U0001faff\ufe0f])\u200d(?=[\u2190-\u27bf\U0001f000-\U0001faff])"
    "|(?<=[\u0600-\u0dff])[\u200c\u200d](?=[\u0600-\u0dff]))[\u200c\u200d]"
)
"""Joiners that are between no emoji and no letters that are joined; those are invisible."""

_MARK = "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_FLOOD = re.compile(f"({_MARK}{{8}})({_MARK}+)")
"""More marks on one letter than any language has; they would cover the lines around it."""


class _Codes(dict[int, str]):
    """What to write for each sign, for `str.translate`; a bounded number is kept."""

    def __init__(self, code: Callable[[str], str], **signs: str) -> None:
        super().__init__({ord(sign): text for sign, text in signs.items()})
        self._code = code

    def __missing__(self, number: int) -> str:
        sign = chr(number)
        known = "\U0001f000" <= sign <= "\U0001faff" or sign in "\u200c\u200d"  # emoji newer than this Python
        text = sign if sign.isprintable() or known else self._code(sign)
        if len(self) < _MOST_KEPT:
            self[number] = text
        return text


def _code(sign: str) -> str:
    return sign.encode("unicode_escape").decode()


_MOST_KEPT = 4096
_LINE = _Codes(_code)


def line(text: str) -> str:
    r"""Escape what is not seen when it is printed: controls, line breaks, invisible and unassigned signs.

    >>> print(line("a\x1b[2J\nb\u202e"))
    a\x1b[2J\nb\u202e
    """
    if not text.isascii():
        text = _FLOOD.sub(lambda found: found[1] + ascii(found[2])[1:-1], text)
    if text.isprintable():
        return text
    return _STRAY.sub(lambda found: _code(found[0]), text).translate(_LINE)


def _is_shown(text: str) -> bool:
    return line(text) == text


def paragraph(text: str) -> str:
    """As a line, but what separates words, line breaks among it, is one blank."""
    return line(" ".join(text.split()))


def _figure(text: str) -> str:
    """A line as long as a picture may have room for; drawing tries it in several sizes."""
    shown = line(text[:_LONGEST_DRAWN])
    return shown if len(text) <= _LONGEST_DRAWN else shown[: _LONGEST_DRAWN - 1] + "…"


_SEPARATORS = frozenset("\u2028\u2029")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def _html(text: str) -> str:
    parts = re.split("([\u2028\u2029])", text)  # blanks to a browser
    return "".join(
        f"&#{ord(part)};" if part in _SEPARATORS else line(part).translate(_ENTITIES) for part in parts
    )


_MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{[#|~$!<&"})
_ADDRESS = re.compile(r"(?i)(?<=[a-z0-9]):(?=//)|(?<=\bmailto):|(?<=\bxmpp):|(?<=\bwww)\.")
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.ASCII)
_BLOCK = re.compile(r"\A(?:>|[-+=](?=[\s=-]|\Z)|\d{1,9}(?=[.)](?:\s|\Z)))")


def _markdown(text: str) -> str:
    r"""Nothing in it is markup, HTML, a link, a formula, or ends a table's cell.

    >>> print(_markdown("a_b | [x](javascript:y) <b> https://e.org"))
    a\_b \| \[x](javascript:y) \<b> https&#58;//e.org
    """
    parts, done = [], 0
    plain = paragraph(text)
    for mail in _MAIL.finditer(plain):
        parts += [_markdown_words(plain[done : mail.start()]), f"`{mail[0]}`"]
        done = mail.end()
    whole = "".join([*parts, _markdown_words(plain[done:])])
    return _BLOCK.sub(lambda found: found[0] + "\\" if found[0].isdigit() else "\\" + found[0], whole)


def _markdown_words(text: str) -> str:
    return _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", text.translate(_MARKDOWN))


def _code_span(text: str) -> str:
    r"""As Markdown's code; a vertical bar is written as within a table.

    >>> print(_code_span("moat0-224"), _code_span("a`<b>"))
    `moat0-224` `` a`<b> ``
    """
    shown = line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    blank = " " if "`" in shown or not shown.strip() else ""
    return fence + blank + shown.replace("|", "\\|") + blank + fence


_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf|nan)")
_FORMULA = re.compile(r"""(\A|[;|])(?=[\s"']*[=+\-@\t\r＝＋－＠])""")  # other separators, too


def _csv(text: str) -> str:
    r"""One cell, quoted where it must be: one that a spreadsheet would run has an apostrophe before it.

    >>> print(_csv("-1.5"), _csv("=1+1"), _csv("a;b"), _csv('"=1'))
    -1.5 '=1+1 "a;b" "'""=1"
    """
    cell = line(text if _NUMBER.fullmatch(text) else _FORMULA.sub(r"\1'", text))
    if any(sign in cell for sign in ',;"|') or cell != cell.strip():
        return '"' + cell.replace('"', '""') + '"'
    return cell


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    """Lines of comma-separated values without the last line's end."""
    return "\n".join(",".join(map(_csv, row)) or '""' for row in rows)


def _yaml(text: str) -> str:
    r"""A text as YAML on one line, quoted.

    >>> print(_yaml("a\x1b: b\u202e"))
    "a\e: b\u202E"
    """
    return yaml_text(text, default_style='"').rstrip("\n")


def yaml_text(value: Any, **style: Any) -> str:
    """YAML in which nothing is hidden; ``style`` as PyYAML's ``safe_dump`` takes it."""
    import yaml

    style = {"width": float("inf"), **style}
    written = str(yaml.safe_dump(value, allow_unicode=True, **style))
    if all(map(_is_shown, written.split("\n"))):
        return written
    return str(yaml.safe_dump(value, allow_unicode=False, **style))


def _shell(text: str) -> str:
    r"""A word for bash and zsh; one with controls in it works, too.

    >>> print(_shell("my model"), _shell("a\x1bb'c"))
    'my model' $'a\x1bb\'c'
    """
    if _is_shown(text):
        return shlex.quote(text)
    return f"$'{text.translate(_SHELL)}'"


def _shell_code(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return f"\\u{ord(sign):04x}" if "\x7f" < sign < "\u0100" else _code(sign)


_JOINERS = {sign: _code(sign) for sign in "\u200c\u200d"}
_SHELL = _Codes(_shell_code, **{"'": "\\'", "\\": "\\\\", **_JOINERS})


_TARGETS: Mapping[Target, Callable[[str], str]] = {
    "line": line,  # of a terminal or a file of text
    "paragraph": paragraph,
    "figure": _figure,  # matplotlib with parse_math off, and Pillow
    "html": _html,  # within an element or a quoted attribute
    "xml": line,  # for a writer of XML, which escapes what is markup
    "markdown": _markdown,
    "code": _code_span,  # in Markdown
    "csv": _csv,
    "yaml": _yaml,
    "shell": _shell,
}


def escaped(text: str, target: Target = "line") -> str:
    """Escape foreign text for where it goes."""
    return _TARGETS[target](text)


def json_text(
    value: Any, *, indent: int | None = None, ascii_only: bool = False, compact: bool = False
) -> str:
    r"""JSON in which nothing is hidden: controls, signs that turn the direction and the like are codes.

    >>> print(json_text({"a\x9b": "ä\u202e"}))
    {"a\u009b": "ä\u202e"}
    """
    text = json.dumps(
        value,
        indent=indent,
        ensure_ascii=ascii_only,
        allow_nan=not compact,
        separators=(",", ":") if compact else None,
    )
    if text.replace("\n", "").isprintable():
        return text
    return text.translate(_JSON)


_JSON = _Codes(lambda sign: json.dumps(sign)[1:-1], **{"\n": "\n", **_JOINERS})


def _in_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = line(record.getMessage()), ()
    return True


def library_logger() -> logging.Logger:
    """Where the Python face says what a command would print."""
    import logging  # which takes as long as a short command's own work

    logger = logging.getLogger("ckptkit")
    logger.addFilter(_in_one_line)
    return logger


def web_address(url: str) -> str | None:
    """A URL that a document may link to, in plain ASCII; None for anything but http and https.

    >>> web_address("https://e.org/a b)<"), web_address("javascript:alert(1)")
    ('https://e.org/a%20b%29%3C', None)
    """
    if not url.lower().startswith(("https://", "http://")):
        return None
    from urllib.parse import quote

    return quote(url.encode(errors="surrogatepass"), safe=";/?:@&=+$,-_.!~*%#")


def shape_text(shape: Iterable[int]) -> str:
    """A tensor's shape for people.

    >>> shape_text((3, 4)), shape_text(())
    ('3×4', 'scalar')
    """
    return "×".join(map(str, shape)) or "scalar"


def human_bytes(count: int | float) -> str:
    """Size for people, in powers of 1000.

    >>> human_bytes(13_539_672)
    '13.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}(?:v\d{1,2})?|[a-z-]{2,20}(?:\.[A-Z]{2})?/\d{7})", re.ASCII)


def arxiv_id(paper: str | None) -> str | None:
    """Read the id out of a registry's ``paper`` field; None where it is something else.

    >>> arxiv_id("arXiv:2210.01820"), arxiv_id("arXiv:1](javascript:alert(1))")
    ('2210.01820', None)
    """
    found = _ARXIV.fullmatch(paper or "")
    return found and found[1]


_ONE = {"are": "is", "were": "was", "have": "has", "do": "does"}
_MANY = (("axis", "axes"), ("ss", "sses"), ("y", "ies"))


def counted(count: int, noun: str, verb: str = "") -> str:
    """Count with its noun, and with a verb that is given as of several.

    >>> counted(1, "tensor"), counted(1200, "tensor"), counted(0, "entry"), counted(2, "class")
    ('1 tensor', '1,200 tensors', '0 entries', '2 classes')
    >>> counted(1, "tensor", "have"), counted(2, "tensor", "share")
    ('1 tensor has', '2 tensors share')
    """
    if count == 1:
        return f"1 {noun} {_ONE.get(verb, f'{verb}s')}" if verb else f"1 {noun}"
    one, many = next((pair for pair in _MANY if noun.endswith(pair[0])), ("", "s"))
    return f"{count:,} {noun.removesuffix(one)}{many}" + f" {verb}" * bool(verb)


_MOVES = re.compile(r"[\r\n]*(?:\x1b\[A)*")
_OBEYED: Mapping[str, str] = {
    "file": r"([\n\t])",
    "terminal": r"([\n\t]|\A\r|\x1b\[[0-9;]*m)",  # colours, and the start of a bar that a library draws
    "drawing": r"([\n\t\r]|\x1b\[[0-9;?]*[A-Za-z])",  # rich: colours, and steps on the screen
}


def printed(text: str, stream: Literal["file", "terminal", "drawing"]) -> str:
    """What a stream lets through of anything that is written to it: the rest is written as codes."""
    if text.replace("\n", "").isprintable() or (stream == "terminal" and _MOVES.fullmatch(text)):
        return text
    pieces = re.split(_OBEYED[stream], text)
    pieces[::2] = map(line, pieces[::2])
    return "".join(pieces)


def in_words(name: str) -> str:
    """A name such as that of a task, as it is written in a sentence.

    >>> in_words("image-classification"), in_words("multi-label-tagging")
    ('image classification', 'multi-label tagging')
    """
    return name.replace("-", " ").replace("multi ", "multi-")


def spelled(name: str) -> str:
    """A name without what people spell differently: case, hyphens, underscores, blanks.

    >>> spelled("Top-1"), spelled("box_mAP")
    ('top1', 'boxmap')
    """
    return name.strip().lower().replace("-", "").replace("_", "").replace(" ", "")
