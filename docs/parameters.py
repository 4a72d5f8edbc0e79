"""An extension of griffe, which reads docstrings for the reference of Python.

Parameters that share a description have types and defaults of their own; griffe gives them the first one's.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(r"^(\w+(?:, \w+)+)((?: : .*)?\n(?: {4}.*\n|\n(?= {4}))*)", re.MULTILINE)
"""Names, in numpydoc's way, and what is written about all of them."""


class OwnTypes(griffe.Extension):
    """Writes the description of several parameters out for each."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Change the docstring before it is parsed."""
        if func.docstring:
            names = {parameter.name for parameter in func.parameters}

            def written_out(found: re.Match[str]) -> str:
                shared = found[1].split(", ")
                return "".join(name + found[2] for name in shared) if names.issuperset(shared) else found[0]

            func.docstring.value = SHARED.sub(written_out, func.docstring.value)
