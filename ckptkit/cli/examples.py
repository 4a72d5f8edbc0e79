"""The examples of a command's help: one a line, so that they can be copied."""

from __future__ import annotations

import inspect

_HEAD = "Examples: "
_BETWEEN = " · "
_KEEP_LINES = "\b\n"
"""Before a paragraph it tells click not to wrap it."""


def examples_in(help_text: str) -> list[str]:
    r"""Return the commands of a docstring's last paragraph, ``Examples: one · another``.

    Examples
    --------
    >>> examples_in("Do it.\n\nExamples: ckptkit list\n· ckptkit list 'moat*'")
    ['ckptkit list', "ckptkit list 'moat*'"]
    """
    last = help_text.strip().rpartition("\n\n")[2]
    if not last.startswith(_HEAD):
        return []
    return " ".join(last.removeprefix(_HEAD).split()).split(_BETWEEN)


def help_of(function: object, *, rich: bool) -> str:
    """Return a command's docstring as its help shows it: the examples on lines of their own, at the end.

    Parameters
    ----------
    function : callable
    rich : bool
        Whether rich draws the help: it keeps the lines of a paragraph, which click wraps anew.
    """
    text = inspect.getdoc(function) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]
    found = examples_in(text)
    if found:
        lines = "\n".join(["Examples:", *(f"  {example}" for example in found)])
        paragraphs[-1] = lines if rich else _KEEP_LINES + lines
    whole = "\n\n".join(paragraphs)
    return whole.replace("[", r"\[") if rich else whole  # rich would read '[torch]' as markup
