"""A user's own rules in a YAML file: names and axis orders of a model that ckptkit does not know.

A file maps the name of each tensor in the source to that in the target, and the order of its axes::

    rules:
      - source: "block_{i}/conv/kernel"
        target: "blocks.{i}.conv.weight"
        op: conv                      # or  axes: "h w i o -> o i h w"
    ignore:
      - name: step
        pattern: "global_step"
        reason: "counts training steps"

``{i}`` matches digits, the same ones on both sides. An ``op`` is read from the source to the target: its
name is that of an order in `base.axes.OPS`, written for TensorFlow → PyTorch; ``axes`` gives any two orders.
A merged axis ``(h d)`` on the source's side needs the ``sizes`` of all but one of its axes.
With ``direction: reverse`` (or ``--reverse``) the whole file is read from the target to the source.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from ckptkit._version import DOCUMENTATION
from ckptkit.base.axes import OPS, Op, Shape
from ckptkit.base.errors import NotFoundError, UsageError, faults_in_words
from ckptkit.registry.document import Document, Location, bounded, parse, read_text, short
from ckptkit.rules.language import shape_of

MAX_FILE_SIZE = 4_000_000
"""Bytes; the largest table of this project, written out as rules, has 20,000."""

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_SIDE = re.compile(r"\s*(?:(?:\([a-z](?: +[a-z])*\)|[a-z]|1)(?:\s+|$))*")
_AXIS = re.compile(r"\([^()]*\)|[a-z]|1")
_PLACEHOLDER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGITS = re.compile("[0-9]+")
_MOST_PLACEHOLDERS = 50
"""In one name."""
_MOST_FAULTS = 500
"""After so many a file is not checked further."""


class _RuleText(BaseModel):
    """One rule as written in the file."""

    model_config = _STRICT

    source: str = Field(min_length=1)
    target: str = Field(min_length=1)
    op: str | None = None
    axes: str | None = None
    sizes: dict[str, PositiveInt] = Field(default_factory=dict)
    optional: bool = False


class _IgnoreText(BaseModel):
    """One ignore as written in the file."""

    model_config = _STRICT

    name: str = Field(min_length=1)
    pattern: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class _FileText(BaseModel):
    """The whole file."""

    model_config = _STRICT

    rules: list[_RuleText] = Field(min_length=1)
    ignore: list[_IgnoreText] = Field(default_factory=list)
    direction: Literal["forward", "reverse"] = "forward"


@dataclass(frozen=True)
class NamePattern:
    """A tensor name with placeholders for digits.

    Examples
    --------
    >>> source, target = NamePattern.parse("block_{i}/w"), NamePattern.parse("blocks.{i}.weight")
    >>> target.fill(source.values("block_12/w"))
    'blocks.12.weight'
    >>> source.values("block_x/w") is None
    True
    """

    text: str
    regex: re.Pattern[str]
    placeholders: frozenset[str]
    shape: str
    """What every name that fits has in common with it: see `shape_of`."""

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Parse a pattern; raises ValueError when its braces make no placeholder."""
        regex = shape = between = ""
        seen: set[str] = set()
        count = 0
        for literal, field, spec, conversion in Formatter().parse(text):
            regex += re.escape(literal)
            shape += literal
            between += literal
            if field is None:
                continue
            if count and not between.strip("0123456789"):
                what = "only digits" if between else "nothing"
                raise ValueError(f"{what} between {{{field}}} and the placeholder before it")
            if not _PLACEHOLDER.fullmatch(field) or spec or conversion:
                raise ValueError(f"{{{field}}} is not a placeholder: write {{i}} or another plain name")
            count += 1
            if count > _MOST_PLACEHOLDERS:
                raise ValueError(f"more than {_MOST_PLACEHOLDERS} placeholders")
            regex += f"(?P={field})" if field in seen else f"(?P<{field}>[0-9]+)"
            shape += "0"
            between = ""
            seen.add(field)
        return cls(text, re.compile(regex), frozenset(seen), shape_of(shape))

    def values(self, name: str) -> dict[str, str] | None:
        """Digits by placeholder; None where the name does not fit."""
        found = self.regex.fullmatch(name)
        return found.groupdict() if found else None

    def fill(self, values: dict[str, str]) -> str:
        """The name with digits in place of its placeholders."""
        return self.text.format(**values)


@dataclass(frozen=True)
class IgnoreRule:
    """Tensors that are left out."""

    name: str  # what they are, in a word
    pattern: str  # regular expression for the whole tensor name
    reason: str  # why leaving them out loses nothing
    line: int  # of its pattern


@dataclass(frozen=True)
class NameRule:
    """One rule: names on both sides and the op from the source's axes to the target's."""

    source: NamePattern
    target: NamePattern
    op: Op  # its external side is the source's
    optional: bool  # whether it may match nothing
    line: int

    @property
    def reversed(self) -> NameRule:
        """The same rule read from the target to the source."""
        op = self.op if self.op.is_identity else _op(self.op.canonical, self.op.external, dict(self.op.sizes))
        return replace(self, source=self.target, target=self.source, op=op)

    def target_shape(self, shape: Shape) -> Shape:
        """Shape that a source tensor has in the target."""
        axes = len(_AXIS.findall(self.op.external))
        if self.op.external and axes != len(shape):
            raise ValueError(f"{axes} axes expected, shape {list(shape)} has {len(shape)}")
        return self.op.inverse.external_shape(shape, self.op.sizes)


@dataclass(frozen=True)
class RuleFile:
    """A file of rules."""

    path: Path
    sha256: str
    rules: tuple[NameRule, ...]
    ignores: tuple[IgnoreRule, ...]
    direction: Literal["forward", "reverse"] = "forward"  # which way the rules are read

    @property
    def reversed(self) -> RuleFile:
        """The same rules the other way round; tensors to ignore are those of whatever is read."""
        other: Literal["forward", "reverse"] = "reverse" if self.direction == "forward" else "forward"
        return replace(self, rules=tuple(rule.reversed for rule in self.rules), direction=other)


def load_rules(path: Path | str, *, reverse: bool = False) -> RuleFile:
    """Read a file of rules."""
    path = Path(path)
    absent = NotFoundError(f"{path}: no such file of rules", hint="check --rules")
    text, data = read_text(
        path, MAX_FILE_SIZE, absent, lambda fault: UsageError(f"{path}: {fault}"), "utf-8-sig"
    )
    checked = _Checked(path, parse(text))
    rules = RuleFile(path, hashlib.sha256(data).hexdigest(), checked.rules, checked.ignores)
    return rules.reversed if (checked.direction == "reverse") != reverse else rules


class _Checked:
    """The checked parts of a document; refuses it with every fault at once."""

    def __init__(self, path: Path, document: Document) -> None:
        self._document = document
        self._faults = list(document.faults)
        self.rules: tuple[NameRule, ...] = ()
        self.ignores: tuple[IgnoreRule, ...] = ()
        self.direction = "forward"
        if not self._faults:
            self._check(document.value)
        if self._faults:
            faults = dict.fromkeys(sorted(self._faults, key=lambda fault: fault[0]))
            plural = "fault" if len(faults) == 1 else "faults"
            listed = faults_in_words(f"line {line}: {bounded(what)}" for line, what in faults)
            raise UsageError(
                f"{path}: {len(faults)} {plural}: {listed}",
                hint=f"how to write one: {DOCUMENTATION}/reference/rules.md",
            )

    def _fault(self, location: Location, what: str) -> None:
        if len(self._faults) < _MOST_FAULTS:
            self._faults.append((self._document.line(*location), what))

    def _check(self, value: Any) -> None:
        if not isinstance(value, dict):
            self._fault((), "a file of rules is a mapping with the key 'rules'")
            return
        try:
            text = _FileText.model_validate(value)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._fault(detail["loc"], _sentence(detail["loc"], detail["type"], detail["msg"]))
            return
        self.direction = text.direction
        self.rules = tuple(
            rule for i, row in enumerate(text.rules) if (rule := self._rule(("rules", i), row)) is not None
        )
        self.ignores = tuple(
            IgnoreRule(row.name, row.pattern, row.reason, self._document.line("ignore", i, "pattern"))
            for i, row in enumerate(text.ignore)
        )
        for i, row in enumerate(text.ignore):
            try:
                compiled(row.pattern)
            except ValueError as error:
                self._fault(("ignore", i, "pattern"), f"{short(row.pattern)}: {error}")

    def _rule(self, place: Location, row: _RuleText) -> NameRule | None:
        before = len(self._faults)
        source = self._name(place, "source", row.source)
        target = self._name(place, "target", row.target)
        if source and target and source.placeholders != target.placeholders:
            only = ", ".join(f"{{{name}}}" for name in sorted(source.placeholders ^ target.placeholders))
            self._fault(place, f"{only} is on one side only of {row.source!r} and {row.target!r}")
        op = self._op(place, row)
        if len(self._faults) > before or source is None or target is None or op is None:
            return None
        return NameRule(source, target, op, row.optional, self._document.line(*place))

    def _name(self, place: Location, key: str, text: str) -> NamePattern | None:
        try:
            return NamePattern.parse(text)
        except ValueError as error:
            self._fault((*place, key), f"{key} {text!r}: {error}")
            return None

    def _op(self, place: Location, row: _RuleText) -> Op | None:
        try:
            if (row.op is None) == (row.axes is None):
                raise ValueError("give either 'op' or 'axes'")
            if row.axes is not None:
                return _op(*_sides(row.axes), row.sizes)
            if row.op not in OPS:
                raise ValueError(f"unknown op {row.op!r}: one of {', '.join(OPS)}; or write 'axes'")
            known = OPS[row.op]
            return _op(known.external, known.canonical, row.sizes)
        except ValueError as error:
            self._fault((*place, "axes" if row.axes is not None else "op"), str(error))
            return None


def _sides(axes: str) -> tuple[str, str]:
    """The two patterns of ``"h w i o -> o i h w"``, in plain spelling."""
    sides = [" ".join(side.split()) for side in axes.replace("→", "->").split("->")]
    if len(sides) != 2 or not all(_SIDE.fullmatch(side) for side in sides):
        raise ValueError(f'axes {axes!r} are not two patterns: write them like "h w i o -> o i h w"')
    letters = [re.findall("[a-z]", side) for side in sides]
    twice = sorted({letter for side in letters for letter in side if side.count(letter) > 1})
    if twice:
        raise ValueError(f"axes {axes!r} name {', '.join(twice)} twice on one side")
    if set(letters[0]) != set(letters[1]):
        raise ValueError(f"axes {axes!r} do not name the same letters on both sides")
    return sides[0], sides[1]


def _op(source: str, target: str, sizes: dict[str, int]) -> Op:
    unknown = sorted(set(sizes) - set(re.findall("[a-z]", source)))
    if unknown:
        raise ValueError(f"sizes are given for {', '.join(unknown)}, which is not an axis here")
    if not source and not target:
        return OPS["identity"]
    return Op(f"{source} → {target}" if source != target else "identity", source, target, sizes)


def _sentence(location: Sequence[str | int], kind: str, message: str) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if kind == "extra_forbidden":
        return f"unknown key {where}"
    if kind == "missing":
        return f"{where} is missing"
    return f"{where}: {message[:1].lower()}{message[1:]}"


# -- a user's regular expressions on a file's names ----------------------------------------------------------

# Python's ``re`` cannot be stopped, and a short expression may keep it busy for years. One that is seen to
# take a time in proportion to the name runs here; all others run in a process of their own, which the system
# ends.

_LONGEST = 10_000
"""Characters of an expression."""
_DEEPEST = 200
"""Groups inside each other; how deep Python itself goes depends on the program that it runs in."""
_SECONDS = 1
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
    if len(expression) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST:,} characters")
    if _depth(expression) > _DEEPEST:
        raise ValueError("nested too deeply")
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


def _signs(expression: str) -> str:
    """An expression with ``x`` for what is escaped or in a class."""
    return re.sub(r"\\[^1-9]|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\Z)", "x", expression, flags=re.DOTALL)


def _depth(expression: str) -> int:
    """How deep its groups are inside each other."""
    steps = ((sign == "(") - (sign == ")") for sign in _signs(expression))
    return max(accumulate(steps), default=0)


def _is_quick(expression: str) -> bool:
    """Whether there is little to try: one repetition at the most, of a single character, and one group."""
    signs = _signs(expression)
    repetitions = sum(map(signs.count, "*+?{\\"))
    return repetitions <= 1 and signs.count("(") <= 1 and not re.search(r"\)[*+?{]", signs)


def _apart(expressions: Mapping[int, str], names: Sequence[str]) -> dict[int, list[int]]:
    """As `fitting`, in a process that is ended when it takes too long."""
    seconds = _SECONDS + len(expressions) * len(names) // _PAIRS_A_SECOND
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
