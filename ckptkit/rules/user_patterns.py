"""A user's regular expressions on a file's names, in bounded time and memory.

Python's ``re`` cannot be stopped, and a short expression may keep it busy for years. One that is seen to take
a time in proportion to the name runs here; all others run in a process of their own, which the system ends.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence

LONGEST = 10_000
"""Characters of an expression."""
SECONDS = 1
"""Of processor time for all expressions of a file, and more where there are many names."""
_PAIRS_A_SECOND = 200_000
_AT_ONCE = 200_000_000
"""Characters of expressions times those of names: a fraction of a second at the worst."""
_MEMORY = 1 << 30

_PROGRAM = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
expressions, names, seconds, memory = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except (ImportError, ValueError, OSError):
    pass
for expression in expressions:
    print("[]", flush=True)
    fits = re.compile(expression).fullmatch
    print(json.dumps([at for at, name in enumerate(names) if fits(name)]), flush=True)
"""


class TooMuchError(Exception):
    """An expression takes too long; ``place`` is its index."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def compiled(expression: str) -> re.Pattern[str]:
    """Compile an expression; raises ValueError where that fails, or it is too long or nested too deeply."""
    if len(expression) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(expression)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (re.error, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from error


def fitting(expressions: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """For each expression, which of the names it fits as a whole.

    Examples
    --------
    >>> fitting(["step|epoch", "opt/.*"], ["opt/m", "step", "w"])
    [[1], [0]]
    """
    size, left = sum(map(len, names)), _AT_ONCE
    found: dict[int, list[int]] = {}
    apart: dict[int, str] = {}
    for place, expression in enumerate(expressions):
        left -= len(expression) * size
        if left >= 0 and _is_quick(expression):
            fits = compiled(expression).fullmatch
            found[place] = [at for at, name in enumerate(names) if fits(name)]
        else:
            apart[place] = expression
    if apart:
        found.update(_apart(apart, names))
    return [found[place] for place in range(len(expressions))]


def _is_quick(expression: str) -> bool:
    """Whether there is little to try: one repetition at the most, of a single character, and one group."""
    signs = re.sub(r"\\[^1-9]|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\Z)", "x", expression, flags=re.DOTALL)
    repetitions = sum(map(signs.count, "*+?{\\"))
    return repetitions <= 1 and signs.count("(") <= 1 and not re.search(r"\)[*+?{]", signs)


def _apart(expressions: Mapping[int, str], names: Sequence[str]) -> dict[int, list[int]]:
    """As `fitting`, in a process that is ended when it takes too long."""
    seconds = SECONDS + len(expressions) * len(names) // _PAIRS_A_SECOND
    given = json.dumps([list(expressions.values()), names, seconds, _MEMORY])
    try:
        done = subprocess.run(  # noqa: S603 (Python itself, with a program of our own)
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=given.encode(),
            capture_output=True,
            timeout=10 * seconds,
            check=False,
        )
        output, finished = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, finished = error.stdout or b"", False
    lines = output.splitlines()
    places = list(expressions)
    if not finished or len(lines) != 2 * len(places):
        raise TooMuchError(places[min(max(0, len(lines) - 1) // 2, len(places) - 1)])
    return dict(zip(places, map(json.loads, lines[1::2]), strict=True))
