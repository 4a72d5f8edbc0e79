"""Rules for names: how a user's own file maps tensors of one checkpoint to those of another.

A rule has name patterns on both sides and an op from the axes of the source to those of the target. Most
rules move one tensor; others join several into one, cut one into several, or fill in a constant. Each has an
inverse, so that a file of rules is read both ways.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Literal

from ckptkit.base.axes import IDENTITY, Fusion, Op, Shape
from ckptkit.base.tensors import DType
from ckptkit.rules.language import shape_of

Kind = Literal["move", "concat", "split", "stack", "unstack", "fill", "tie"]
Sure = Literal["proven", "forced", "guessed", "ambiguous"]
Fill = Literal["zeros", "ones", "arange"]

INVERSE: dict[Kind, Kind] = {
    "move": "move",
    "concat": "split",
    "split": "concat",
    "stack": "unstack",
    "unstack": "stack",
    "fill": "fill",
    "tie": "tie",
}

_FIELD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\.\.\.|([+-])([0-9]{1,9}))?")
_WIDTH = re.compile(r"0([1-9])d?")
_MOST_PLACEHOLDERS = 50
"""In one name."""
_MOST_DIGITS = 18
"""Of a number that is counted with."""


@dataclass(frozen=True)
class Placeholder:
    """One pair of braces in a name."""

    name: str
    offset: int = 0  # what is written is the number and this
    width: int = 0  # digits at least, with zeros before them
    crosses: bool = False  # whether it matches anything, separators too, and not digits alone

    @property
    def counts(self) -> bool:
        """Whether its digits are taken for a number."""
        return bool(self.offset or self.width)

    @classmethod
    def parse(cls, text: str, spec: str = "") -> Placeholder:
        """Read what is between the braces; raises ValueError."""
        found, width = _FIELD.fullmatch(text), _WIDTH.fullmatch(spec)
        crosses = found is not None and found[2] == "..."
        if found is None or (spec and (width is None or crosses)):
            whole = f"{text}:{spec}" if spec else text
            raise ValueError(
                f"{{{whole}}} is not a placeholder: write {{i}}, {{i+1}}, {{i:02}} or {{rest...}}"
            )
        offset = 0 if crosses or not found[2] else int(found[3] + found[4])
        return cls(found[1], offset, int(width[1]) if width else 0, crosses)


@dataclass(frozen=True)
class NamePattern:
    """A tensor name with placeholders.

    Examples
    --------
    >>> source, target = NamePattern.parse("block_{i}/w"), NamePattern.parse("blocks.{i}.weight")
    >>> target.fill(source.values("block_12/w"))
    'blocks.12.weight'
    >>> source.values("block_x/w") is None
    True
    >>> source, target = NamePattern.parse_all(["layer_{i+1:02}/{x...}", "layers.{i}.{x...}"])
    >>> source.values("layer_08/attention/query"), source.values("layer_00/attention/query")
    ({'i': '7', 'x': 'attention/query'}, None)
    >>> source.fill(target.values("layers.9.bias"))
    'layer_10/bias'
    """

    text: str
    parts: tuple[str | Placeholder, ...]
    least: Mapping[str, int] = field(default_factory=dict, hash=False, compare=False)
    """Of placeholders whose digits are numbers: the smallest one that every name of the rule has."""

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Parse a pattern; raises ValueError when its braces make no placeholder."""
        return cls.parse_all([text])[0]

    @classmethod
    def parse_all(cls, texts: Sequence[str], counted: Iterable[str] = ()) -> list[NamePattern]:
        """Parse all patterns of a rule; a placeholder with arithmetic in one is a number in all of them."""
        parsed = [_parts(text) for text in texts]
        least = dict.fromkeys(counted, 0)
        for part in (part for parts in parsed for part in parts):
            if isinstance(part, Placeholder) and (part.counts or part.name in least):
                least[part.name] = max(least.get(part.name, 0), -part.offset)
        return [cls(text, parts, least) for text, parts in zip(texts, parsed, strict=True)]

    @cached_property
    def fields(self) -> tuple[Placeholder, ...]:
        """Its placeholders, in order."""
        return tuple(part for part in self.parts if isinstance(part, Placeholder))

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """Their names."""
        return frozenset(one.name for one in self.fields)

    @cached_property
    def crossing(self) -> frozenset[str]:
        """Names of those that match anything."""
        return frozenset(one.name for one in self.fields if one.crosses)

    @cached_property
    def shape(self) -> str:
        """What every name that fits has in common with it, see `shape_of`, unless one matches anything."""
        return shape_of("".join("0" if isinstance(part, Placeholder) else part for part in self.parts))

    @cached_property
    def literal(self) -> int:
        """How much of it is written out: of two that match anything, the one with more of it comes first."""
        return sum(len(part) for part in self.parts if isinstance(part, str))

    @cached_property
    def start(self) -> str:
        """What every name that fits begins with."""
        return self.parts[0] if self.parts and isinstance(self.parts[0], str) else ""

    @cached_property
    def end(self) -> str:
        """What every name that fits ends with."""
        return self.parts[-1] if self.parts and isinstance(self.parts[-1], str) else ""

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile("".join(map(self._expression, self.parts)), re.DOTALL)

    def _expression(self, part: str | Placeholder) -> str:
        if isinstance(part, str):
            return re.escape(part)
        if part.crosses:
            return "(.+)"
        if part.name not in self.least:
            return "([0-9]+)"
        if part.width:
            return f"([0-9]{{{part.width}}}|[1-9][0-9]{{{part.width},{_MOST_DIGITS}}})"
        return f"(0|[1-9][0-9]{{0,{_MOST_DIGITS}}})"

    def values(self, name: str) -> dict[str, str] | None:
        """What is in place of each placeholder; None where the name does not fit."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        values: dict[str, str] = {}
        for one, written in zip(self.fields, found.groups(), strict=True):
            value = written
            if one.name in self.least:
                number = int(written) - one.offset
                if number < self.least[one.name]:
                    return None
                value = str(number)
            if values.setdefault(one.name, value) != value:
                return None
        return values

    def fill(self, values: Mapping[str, str]) -> str:
        """The name with these values in place of its placeholders."""
        return "".join(
            part
            if isinstance(part, str)
            else f"{int(values[part.name]) + part.offset:0{part.width}}"
            if part.name in self.least
            else values[part.name]
            for part in self.parts
        )


def _parts(text: str) -> tuple[str | Placeholder, ...]:
    parts: list[str | Placeholder] = []
    count, between = 0, ""
    for literal, named, spec, conversion in Formatter().parse(text):
        between += literal
        if literal and parts and isinstance(parts[-1], str):  # a brace written twice
            parts[-1] += literal
        elif literal:
            parts.append(literal)
        if named is None:
            continue
        if count and not between.strip("0123456789"):
            what = "only digits" if between else "nothing"
            raise ValueError(f"{what} between {{{named}}} and the placeholder before it")
        if conversion:
            raise ValueError(f"{{{named}!{conversion}}} is not a placeholder: write {{{named}}}")
        parts.append(Placeholder.parse(named, spec or ""))
        count += 1
        if count > _MOST_PLACEHOLDERS:
            raise ValueError(f"more than {_MOST_PLACEHOLDERS} placeholders")
        between = ""
    if sum(isinstance(part, Placeholder) and part.crosses for part in parts) > 1:
        raise ValueError("more than one placeholder with ...: a name could be split in several ways")
    return tuple(parts)


@dataclass(frozen=True)
class IgnoreRule:
    """Tensors that are left out."""

    name: str  # what they are, in a word
    pattern: str  # regular expression for the whole tensor name
    reason: str  # why leaving them out loses nothing
    line: int  # of its pattern


@dataclass(frozen=True)
class Constant:
    """A tensor that the target needs and the source lacks."""

    value: Fill
    shape: Shape
    dtype: DType
    beside: NamePattern | None = None  # one for each tensor that another rule makes under such a name

    @property
    def reason(self) -> str:
        """Where its values come from."""
        return f"filled with {self.value} by the rules"


@dataclass(frozen=True)
class Tie:
    """A tensor of the target that is another one of it under a second name."""

    beside: NamePattern

    @property
    def reason(self) -> str:
        """Why it need not be read backwards."""
        return f"the same as {self.beside.text} by the rules"


@dataclass(frozen=True)
class NameRule:
    """One rule: names on both sides and the op from the source's axes to the target's."""

    sources: tuple[NamePattern, ...]  # several: they are joined. None: it is a constant
    targets: tuple[NamePattern, ...]  # several: the source is cut. None: a constant, read backwards
    op: Op = IDENTITY  # its external side is the source's
    kind: Kind = "move"
    fusion: Fusion | None = None  # which part of the one tensor each of the many is
    constant: Constant | Tie | None = None  # what it makes without a tensor of the source
    optional: bool = False  # whether it may match nothing
    dtype: DType | None = None  # element type in the target; None: the source's
    sure: Sure | None = None  # how sure whoever wrote it is; None: a person wrote it
    line: int = 0

    @property
    def source(self) -> NamePattern:
        """The first name of the source; of a constant its own."""
        return (self.sources or self.targets)[0]

    @property
    def target(self) -> NamePattern:
        """The first name of the target; of a constant its own."""
        return (self.targets or self.sources)[0]

    @property
    def over(self) -> str:
        """The placeholder that counts the many tensors of a stack; empty where there is none."""
        return self.fusion.over if self.fusion is not None and self.kind in ("stack", "unstack") else ""

    @property
    def reversed(self) -> NameRule:
        """The same rule read from the target to the source; element types are then as they are."""
        return replace(
            self,
            sources=self.targets,
            targets=self.sources,
            op=turned_around(self.op),
            kind=INVERSE[self.kind],
            dtype=None,
        )


def turned_around(op: Op) -> Op:
    """An op read the other way, with its own name."""
    return op if op.is_identity else op_of(op.canonical, op.external, dict(op.sizes))


def op_of(source: str, target: str, sizes: dict[str, int]) -> Op:
    """An op by its two patterns, which are its name."""
    if not source and not target:
        return IDENTITY
    return Op(f"{source} → {target}" if source != target else "identity", source, target, sizes)


@dataclass(frozen=True)
class Prefixes:
    """What `strip` took off the names of a source, and what is put before them on the way back.

    >>> taken = Prefixes.of({"m.w": "w", "m.b": "b", "step": "step"})
    >>> taken, Prefixes.read(taken.text, ("m.",)) == taken
    (Prefixes(usual='m.', others={'step': ''}), True)
    >>> [taken.before(name) for name in ("w", "step")]
    ['m.', '']
    """

    usual: str = ""
    others: Mapping[str, str] = field(default_factory=dict, hash=False)  # of names that had another one

    @classmethod
    def of(cls, names: Mapping[str, str]) -> Prefixes:
        """Of names as they were, and what was left of each."""
        taken = {left: name[: len(name) - len(left)] for name, left in names.items()}
        usual = max(Counter(taken.values()).items(), key=lambda one: one[1], default=("", 0))[0]
        return cls(usual, {name: prefix for name, prefix in taken.items() if prefix != usual})

    @classmethod
    def read(cls, text: str, strip: Sequence[str]) -> Prefixes | None:
        """What `text` wrote; None where that cannot be or these prefixes do not make it up."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("others"), dict):
            return None
        found = [value.get("usual"), *value["others"].values()]
        if not all(isinstance(one, str) for one in found) or any(_rest(one, strip) for one in set(found)):
            return None
        return cls(value["usual"], value["others"])

    @property
    def text(self) -> str:
        """As a converted file's metadata have it."""
        return json.dumps({"usual": self.usual, "others": self.others})

    def before(self, name: str) -> str:
        """What belongs before a name."""
        return self.others.get(name, self.usual)


@dataclass(frozen=True)
class RuleFile:
    """A file of rules."""

    path: Path
    sha256: str
    rules: tuple[NameRule, ...]
    ignores: tuple[IgnoreRule, ...]
    direction: Literal["forward", "reverse"] = "forward"  # which way the rules are read
    strip: tuple[str, ...] = ()  # beginnings of wrappers, taken off the source's names when read forward

    @property
    def reversed(self) -> RuleFile:
        """The same rules the other way round; tensors to ignore are those of whatever is read."""
        other: Literal["forward", "reverse"] = "reverse" if self.direction == "forward" else "forward"
        return replace(self, rules=tuple(rule.reversed for rule in self.rules), direction=other)

    def stripped(self, name: str) -> str:
        """A name of the source as the rules see it.

        >>> RuleFile(Path("a"), "", (), (), strip=("module.", "_orig_mod.")).stripped("module._orig_mod.w")
        'w'
        """
        if self.direction == "reverse" or not self.strip:
            return name
        return _rest(name, self.strip) or name


def _rest(name: str, strip: Sequence[str]) -> str:
    """A name without the prefixes that it begins with."""
    start = 0
    while prefix := next((one for one in strip if name.startswith(one, start)), ""):
        start += len(prefix)
    return name[start:]
