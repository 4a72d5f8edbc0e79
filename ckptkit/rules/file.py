"""A user's own rules in a YAML file: names and axis orders of a model that ckptkit does not know.

A file maps the name of each tensor in the source to that in the target, and the order of its axes::

    version: 2
    rules:
      - source: "block_{i}/conv/kernel"
        target: "blocks.{i}.conv.weight"
        op: conv                      # or  axes: "h w i o -> o i h w"
      - {source: "block_{i}/conv/bias", target: "blocks.{i}.conv.bias"}
    ignore:
      - name: step
        pattern: "global_step"
        reason: "counts training steps"

Every tensor of the source needs one rule or one ``ignore``, and every rule a tensor. What does not fit is
listed at once with its line, and nothing is converted. With ``direction: reverse`` (or ``--reverse``) the
whole file is read from the target to the source: every rule has an inverse, bit for bit.

A file without ``version``, or with ``version: 1``, has ``source``, ``target``, ``op`` or ``axes``, ``sizes``
and ``optional`` alone, and only ``{i}`` in names.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from ckptkit._version import DOCUMENTATION
from ckptkit.base.axes import IDENTITY, OPS, Fusion, Op
from ckptkit.base.errors import NotFoundError, UsageError, shown_faults
from ckptkit.base.tensors import DTYPES, DType, dtype_named
from ckptkit.base.text import counted
from ckptkit.registry.document import Document, Location, bounded, parse, read_text, short
from ckptkit.rules.mapping import (
    Constant,
    Fill,
    IgnoreRule,
    Kind,
    NamePattern,
    NameRule,
    RuleFile,
    Sure,
    Tie,
    op_of,
)

__all__ = [
    "MAX_FILE_SIZE",
    "IgnoreRule",
    "NamePattern",
    "NameRule",
    "RuleFile",
    "TooMuchError",
    "compiled",
    "fitting",
    "load_rules",
    "rule_schema",
    "rules_in",
]

MAX_FILE_SIZE = 4_000_000
"""Bytes; the largest table of this project, written out as rules, has 20,000."""

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_LETTERS = re.compile(r"\s*(?:(?:\([a-z](?: +[a-z])*\)|[a-z]|1)(?:\s+|$))*")
_WORD = "[A-Za-z_][A-Za-z0-9_]*"
_WORDS = re.compile(rf"\s*(?:(?:\({_WORD}(?: +{_WORD})*\)|{_WORD}|1)(?:\s+|$))*")
_MOST_FAULTS = 500
"""After so many a file is not checked further."""


class _RuleText1(BaseModel):
    """One rule of version 1 as written in the file."""

    model_config = _STRICT

    source: str = Field(min_length=1)
    target: str = Field(min_length=1)
    op: str | None = None
    axes: str | None = None
    sizes: dict[str, PositiveInt] = Field(default_factory=dict)
    optional: bool = False


def _list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Name = Annotated[str, Field(min_length=1)]
_Names = Annotated[list[_Name], BeforeValidator(_list_of_one), Field(min_length=1)]


class _RuleText(BaseModel):
    """One rule as written in the file."""

    model_config = _STRICT

    source: _Names | None = Field(
        default=None,
        description="Name in the source; a list for `op: concat`, or for `op: stack` with `axis`. Constants "
        "have none.",
    )
    target: _Names = Field(
        description="Name in the target; a list for `op: split`, or for `op: unstack` with `axis`."
    )
    op: str | None = Field(
        default=None,
        description="`concat`, `split`, `stack`, `unstack`, or an order of axes by its name (below). "
        "Default: nothing changes but the name.",
    )
    axes: str | None = Field(
        default=None,
        description="Axes of both sides: `h w i o -> o i h w`. Letters or words; `(h d)` is two axes "
        "merged into one, `1` an axis of length one. Of parts of one tensor: a part's axes and the whole's.",
    )
    sizes: dict[str, PositiveInt] = Field(
        default_factory=dict,
        description="Lengths of axes that are merged: all but one of each that is taken apart.",
    )
    axis: int | None = Field(
        default=None,
        description="Along which axis of the one tensor `concat` and `split` work. Default: 0. Of a list "
        "with `op: stack` or `unstack`: along which the tensors of one number are joined; no default.",
    )
    parts: list[PositiveInt] | None = Field(
        default=None,
        description="Lengths of the parts along `axis`, in order; needed where they are not all the same.",
    )
    over: str | None = Field(
        default=None,
        description="`stack`, `unstack`: the placeholder that numbers the parts 0, 1, 2 … `concat`, `split`: "
        "the axis of `axes` that the one tensor alone has, whose index n is part n.",
    )
    fill: Fill | None = Field(
        default=None, description="A constant that the target needs and the source lacks."
    )
    shape: list[NonNegativeInt] | None = Field(default=None, description="Of a constant; `[]` is a number.")
    beside: str | None = Field(
        default=None,
        alias="with",
        min_length=1,
        description="The target of another rule: one constant for each tensor of it.",
    )
    tied: str | None = Field(
        default=None,
        min_length=1,
        description="The target of another rule, of which this target is a second name: tied weights. Read "
        "backwards it is left out, and must hold the same values.",
    )
    dtype: str | None = Field(
        default=None,
        description="Element type in the target, whatever `--dtype` says. Read backwards, types stay.",
    )
    optional: bool = Field(default=False, description="Whether the rule may fit nothing.")
    sure: Sure | None = Field(
        default=None,
        description="How sure whoever wrote it is. `convert` refuses ambiguous rules and names guessed ones; "
        "`--require proven` refuses all that are not proven.",
    )


def rule_schema() -> dict[str, Any]:
    """JSON Schema of one rule, with what each key means."""
    return _RuleText.model_json_schema()


class _IgnoreText(BaseModel):
    """One ignore as written in the file."""

    model_config = _STRICT

    name: str = Field(min_length=1)
    pattern: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class _FileText1(BaseModel):
    """The whole file, version 1."""

    model_config = _STRICT

    version: Literal[1] = 1
    rules: list[_RuleText1] = Field(min_length=1)
    ignore: list[_IgnoreText] = Field(default_factory=list)
    direction: Literal["forward", "reverse"] = "forward"


class _FileText(BaseModel):
    """The whole file."""

    model_config = _STRICT

    version: Literal[2]
    strip: list[_Name] = Field(default_factory=list)
    rules: list[_RuleText] = Field(min_length=1)
    ignore: list[_IgnoreText] = Field(default_factory=list)
    direction: Literal["forward", "reverse"] = "forward"


def load_rules(path: Path | str, *, reverse: bool = False) -> RuleFile:
    """Read a file of rules."""
    path = Path(path)
    absent = NotFoundError(f"{path}: no such file of rules", hint="check --rules")
    text, data = read_text(
        path, MAX_FILE_SIZE, absent, lambda fault: UsageError(f"{path}: {fault}"), "utf-8-sig"
    )
    return rules_in(text, path, hashlib.sha256(data).hexdigest(), reverse=reverse)


def rules_in(text: str, path: Path, sha256: str = "", *, reverse: bool = False) -> RuleFile:
    """Read rules from the text of a file; ``path`` is what messages call it."""
    checked = _Checked(path, parse(text))
    rules = RuleFile(path, sha256, checked.rules, checked.ignores, strip=checked.strip)
    return rules.reversed if (checked.direction == "reverse") != reverse else rules


class _Checked:
    """The checked parts of a document; refuses it with every fault at once."""

    def __init__(self, path: Path, document: Document) -> None:
        self._document = document
        self._faults = list(document.faults)
        self.rules: tuple[NameRule, ...] = ()
        self.ignores: tuple[IgnoreRule, ...] = ()
        self.strip: tuple[str, ...] = ()
        self.direction = "forward"
        if not self._faults:
            self._check(document.value)
        if self._faults:
            faults = dict.fromkeys(sorted(self._faults, key=lambda fault: fault[0]))
            raise UsageError(
                f"{path}: {counted(len(faults), 'fault')}",
                details=shown_faults(f"line {line}: {bounded(what)}" for line, what in faults),
                hint=f"how to write one: {DOCUMENTATION}/reference/rules.md",
            )

    def _fault(self, location: Location, what: str) -> None:
        if len(self._faults) < _MOST_FAULTS:
            self._faults.append((self._document.line(*location), what))

    def _check(self, value: Any) -> None:
        if not isinstance(value, dict):
            self._fault((), "a file of rules is a mapping with the key 'rules'")
            return
        version = value.get("version", 1)
        if type(version) is not int or version not in (1, 2):
            self._fault(
                ("version",), f"version {short(str(version), quoted=False)} is not known here: 1 or 2"
            )
            return
        try:
            text = (_FileText if version == 2 else _FileText1).model_validate(value)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._fault(detail["loc"], _sentence(detail["loc"], detail["type"], detail["msg"], version))
            return
        self.direction = text.direction
        self.ignores = tuple(
            IgnoreRule(row.name, row.pattern, row.reason, self._document.line("ignore", i, "pattern"))
            for i, row in enumerate(text.ignore)
        )
        for i, row in enumerate(text.ignore):
            try:
                compiled(row.pattern)
            except ValueError as error:
                self._fault(("ignore", i, "pattern"), f"{short(row.pattern)}: {error}")
        if isinstance(text, _FileText1):
            self.rules = tuple(self._checked(text.rules, self._rule1))
            return
        self.strip = tuple(text.strip)
        self.rules = tuple(self._checked(text.rules, self._rule))
        if not self._faults:
            self._check_constants()

    def _checked(self, rows: Sequence[Any], read: Callable[[Any, Location], NameRule]) -> Iterator[NameRule]:
        for i, row in enumerate(rows):
            place: Location = ("rules", i)
            before = len(self._faults)
            try:
                rule = read(row, place)
            except _FaultError as fault:
                self._fault((*place, *fault.keys), str(fault))
                continue
            if len(self._faults) == before:
                yield replace(rule, line=self._document.line(*place))

    # -- version 1 -------------------------------------------------------------------------------------------

    def _rule1(self, row: _RuleText1, place: Location) -> NameRule:
        source = self._names(place, "source", [row.source])
        target = self._names(place, "target", [row.target])
        for pattern in (*source, *target):
            for one in pattern.fields:
                if one.counts or one.crosses:
                    plain = f"{{{one.name}}} is all that version 1 has: write 'version: 2' for others"
                    raise _FaultError(f"{pattern.text!r}: {plain}", "source" if source else "target")
        self._check_sides(place, source, target)
        try:
            if (row.op is None) == (row.axes is None):
                raise ValueError("give either 'op' or 'axes'")
            op = _named_op(row.op, row.sizes) if row.op else _op_in(row.axes or "", row.sizes, _LETTERS)
        except ValueError as error:
            self._fault((*place, "axes" if row.axes is not None else "op"), str(error))
            op = IDENTITY
        return NameRule(source, target, op, optional=row.optional)

    # -- version 2 -------------------------------------------------------------------------------------------

    def _rule(self, row: _RuleText, place: Location) -> NameRule:
        kind = _kind(row)
        self._check_keys(row, kind)
        dtype = dtype_named(row.dtype) if row.dtype is not None else None
        if row.dtype is not None and dtype is None:
            raise _FaultError(f"unknown dtype {short(row.dtype)}: one of {', '.join(DTYPES)}", "dtype")
        if row.over is not None and not re.fullmatch(_WORD, row.over):
            raise _FaultError(f"'over' is a name alone, such as e, not {short(row.over)}", "over")
        if kind == "fill":
            return self._constant(row, place, dtype)
        if kind == "tie":
            return self._tie(row, place)
        over = row.over or ""
        counted = (over,) if kind in ("stack", "unstack") else ()
        source = self._names(place, "source", row.source or [], counted)
        target = self._names(place, "target", row.target, counted)
        if source and target:
            both = NamePattern.parse_all([*(p.text for p in source), *(p.text for p in target)], counted)
            source, target = tuple(both[: len(source)]), tuple(both[len(source) :])
            self._check_sides(place, source, target, many=over if counted else "", kind=kind)
        op = self._op(row, kind)
        fusion = None
        if kind != "move":
            if row.parts is not None and len(row.parts) != (many := max(len(source), len(target))):
                raise _FaultError(f"{len(row.parts)} 'parts' of {many} tensors", "parts")
            axis = 0 if row.axis is None and not over else row.axis
            fusion = Fusion(axis, over, tuple(row.parts or ()))
        return NameRule(source, target, op, kind, fusion, None, row.optional, dtype, row.sure)

    def _check_keys(self, row: _RuleText, kind: Kind) -> None:
        """Refuse keys that have no meaning for a kind of rule, and miss those that it needs."""
        fused, stacked = ("concat", "split"), ("stack", "unstack")
        several = len(row.source or ()) > 1 or len(row.target) > 1
        runs = (*fused, *stacked) if several else fused
        meaning = {
            "axis": runs,
            "parts": runs,
            "over": (*fused, *stacked),
            "shape": ("fill",),
            "beside": ("fill",),
        }
        given = [key for key in meaning if getattr(row, key) is not None]
        if idle := [_KEYS.get(key, key) for key in given if kind not in meaning[key]]:
            raise _FaultError(f"{_quoted(idle)} {_has(idle)} no meaning for {_named(kind)}", idle[0])
        many = {"concat": "source", "stack": "source", "split": "target", "unstack": "target"}
        for key, names in (("source", row.source), ("target", row.target)):
            if names is not None and len(names) > 1 and many.get(kind) != key:
                wanted = "concat" if key == "source" else "split"
                raise _FaultError(f"a list as {key} needs 'op: {wanted}'", key)
        if kind in stacked and row.over is None:
            raise _FaultError(f"'over' is missing: the placeholder whose numbers {kind} counts", "op")
        if kind in stacked and several and row.axis is None:
            joined = "joined" if kind == "stack" else "cut"
            raise _FaultError(
                f"'axis' is missing: of the one tensor, along which those of one number are {joined}", "op"
            )
        if kind in fused and row.over is not None:
            if row.axis is not None or row.parts is not None:
                raise _FaultError("'over' is an axis of its own: leave 'axis' and 'parts' out", "over")
            if row.axes is None:
                raise _FaultError("'over' names an axis of 'axes', which is missing", "over")
        if kind not in ("fill", "tie") and row.source is None:
            raise _FaultError("source is missing")

    def _op(self, row: _RuleText, kind: Kind) -> Op:
        """The op of a rule's axes; of parts of one tensor, from a part or to a part."""
        try:
            if row.axes is None:
                named = row.op if kind == "move" and row.op else IDENTITY.name
                return _named_op(named, row.sizes, *_PARTS)
            if kind == "move" and row.op is not None:
                raise ValueError("give either 'op' or 'axes'")
            extra = {"concat": 1, "stack": 1, "split": 0, "unstack": 0}.get(kind)
            return _op_in(row.axes, row.sizes, _WORDS, row.over or "", extra)
        except ValueError as error:
            raise _FaultError(str(error), "axes" if row.axes is not None else "op") from error

    def _constant(self, row: _RuleText, place: Location, dtype: DType | None) -> NameRule:
        self._refuse_idle(row, "fill", ("source", "op", "axes"))
        if row.shape is None:
            raise _FaultError("'shape' is missing: [] for a number", "fill")
        assert row.fill is not None
        target, beside = self._beside(row, place, row.beside, "with")
        constant = Constant(row.fill, tuple(row.shape), dtype or DTYPES["float32"], beside)
        return NameRule((), (target,), kind="fill", constant=constant, sure=row.sure)

    def _tie(self, row: _RuleText, place: Location) -> NameRule:
        self._refuse_idle(row, "tie", ("source", "op", "axes", "fill", "dtype"))
        target, beside = self._beside(row, place, row.tied, "tied")
        assert beside is not None
        return NameRule((), (target,), kind="tie", constant=Tie(beside), sure=row.sure)

    def _refuse_idle(self, row: _RuleText, kind: Kind, keys: Sequence[str]) -> None:
        if idle := [key for key in keys if getattr(row, key) is not None]:
            raise _FaultError(f"{_quoted(idle)} {_has(idle)} no meaning for {_named(kind)}", idle[0])

    def _beside(
        self, row: _RuleText, place: Location, other: str | None, key: str
    ) -> tuple[NamePattern, NamePattern | None]:
        """The target of a rule without source, and that of the rule for whose tensors it is."""
        given = [*row.target, *([other] if other else [])]
        if not self._names(place, "target", given):
            raise _FaultError("no names")
        target, *others = NamePattern.parse_all(given)
        beside = others[0] if others else None
        if target.placeholders != (beside.placeholders if beside else frozenset()):
            what = f"'{key}' has others" if beside else f"'{key}' is missing, which says for which tensors"
            raise _FaultError(f"the placeholders of {target.text!r}: {what}", "target")
        return target, beside

    def _check_constants(self) -> None:
        """Refuse constants beside tensors that no rule makes."""
        made = {target.text for rule in self.rules if rule.constant is None for target in rule.targets}
        for i, rule in enumerate(self.rules):
            beside = rule.constant.beside if rule.kind == "fill" and rule.constant else None
            if beside is not None and beside.text not in made:
                self._fault(("rules", i, "with"), f"no rule has the target {short(beside.text)}")

    # -- names -----------------------------------------------------------------------------------------------

    def _names(
        self, place: Location, key: str, texts: Sequence[str], counted: Iterable[str] = ()
    ) -> tuple[NamePattern, ...]:
        names = []
        for text in texts:
            try:
                names += NamePattern.parse_all([text], counted)
            except ValueError as error:
                self._fault((*place, key), f"{key} {short(text)}: {error}")
        return tuple(names) if len(names) == len(texts) else ()

    def _check_sides(
        self,
        place: Location,
        source: Sequence[NamePattern],
        target: Sequence[NamePattern],
        *,
        many: str = "",
        kind: Kind = "move",
    ) -> None:
        """Refuse names that do not determine each other: ``many`` is the placeholder of one side alone."""
        if not source or not target:
            return
        extra = frozenset({many} if many else ())
        wide, narrow = (target, source) if kind == "unstack" else (source, target)
        if many and (without := next((one for one in wide if many not in one.placeholders), None)):
            raise _FaultError(f"{{{many}}} is not in {without.text!r}", "over")
        if many and any(many in one.placeholders for one in narrow):
            raise _FaultError(f"{{{many}}} is in {narrow[0].text!r} too, which holds all of them", "over")
        if many and many in wide[0].crossing:
            raise _FaultError(f"{{{many}...}} is not a number", "over")
        first = source[0]
        for other in (*source, *target):
            if only := (first.placeholders ^ other.placeholders) - extra:
                named = ", ".join(f"{{{name}}}" for name in sorted(only))
                self._fault(place, f"{named} is on one side only of {first.text!r} and {other.text!r}")
                return
            if mixed := first.crossing ^ other.crossing:
                self._fault(place, f"{{{min(mixed)}}} is {{{min(mixed)}...}} on one side only")
                return


class _FaultError(Exception):
    """What is wrong with a rule, and the key that it is about."""

    def __init__(self, what: str, *keys: str) -> None:
        super().__init__(what)
        self.keys = tuple({name: key for key, name in _KEYS.items()}.get(key, key) for key in keys)


_PARTS = ("concat", "split", "stack", "unstack")
"""Ops of tensors that are parts of one."""

_KEYS = {"beside": "with"}
"""Keys of the file that are not names in Python."""


def _quoted(keys: Sequence[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _has(keys: Sequence[str]) -> str:
    return "has" if len(keys) == 1 else "have"


def _named(kind: Kind) -> str:
    words = {"fill": "a constant", "tie": "a tied tensor", "move": "a rule without op"}
    return words.get(kind, f"op: {kind}")


def _kind(row: _RuleText) -> Kind:
    """Which of the kinds a rule is."""
    if row.fill is not None:
        return "fill"
    if row.tied is not None:
        return "tie"
    if row.op in _PARTS:
        kind: Kind = row.op  # type: ignore[assignment]
        return kind
    return "move"


def _named_op(name: str, sizes: dict[str, int], *more: str) -> Op:
    if name not in OPS:
        raise ValueError(f"unknown op {short(name)}: one of {', '.join([*more, *OPS])}; or write 'axes'")
    return _with_sizes(OPS[name].external, OPS[name].canonical, sizes)


def _op_in(
    axes: str, sizes: dict[str, int], side: re.Pattern[str], over: str = "", whole: int | None = None
) -> Op:
    """The op of ``"h w i o -> o i h w"``; ``over`` is an axis of the ``whole`` side alone."""
    sides = [" ".join(one.split()) for one in axes.replace("→", "->").split("->")]
    if len(sides) != 2 or not all(side.fullmatch(one) for one in sides):
        raise ValueError(f'axes {short(axes)} are not two patterns: write them like "h w i o -> o i h w"')
    names = [re.findall(_WORD, one) for one in sides]
    twice = sorted({name for one in names for name in one if one.count(name) > 1})
    if twice:
        raise ValueError(f"axes {short(axes)} name {', '.join(twice)} twice on one side")
    if over and whole is not None:
        if over not in names[whole] or over in names[1 - whole]:
            where = "to the right" if whole else "to the left"
            raise ValueError(
                f"axes {short(axes)}: {over} belongs {where} of the arrow alone, into the one tensor"
            )
        if over in sizes:
            raise ValueError(f"sizes are given for {over}, whose length is the number of tensors")
    if (set(names[0]) ^ set(names[1])) - {over}:
        letters = "letters" if side is _LETTERS else "axes"
        raise ValueError(f"axes {short(axes)} do not name the same {letters} on both sides")
    return _with_sizes(sides[0], sides[1], sizes)


def _with_sizes(source: str, target: str, sizes: dict[str, int]) -> Op:
    unknown = sorted(set(sizes) - set(re.findall(_WORD, f"{source} {target}")))
    if unknown:
        raise ValueError(f"sizes are given for {', '.join(unknown)}, which is not an axis here")
    return op_of(source, target, sizes)


def _sentence(location: Sequence[str | int], kind: str, message: str, version: int) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if kind == "extra_forbidden":
        newer = version == 1 and location[-1] in _NEWER
        return f"unknown key {where}" + (", which needs 'version: 2'" if newer else "")
    if kind == "missing":
        return f"{where} is missing"
    return f"{where}: {message[:1].lower()}{message[1:]}"


_NEWER = {"strip", *(_KEYS.get(key, key) for key in _RuleText.model_fields)}
"""Keys that version 1 has not, and those of its own."""


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
