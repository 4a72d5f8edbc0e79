"""From pairs of tensors to a file of rules: few, with the numbers of repeated layers as placeholders.

A rule is only as general as is right for the two models at hand: it fits those tensors that it was made from,
and no other of the source or of the target.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckptkit.base.axes import Shape
from ckptkit.base.tensors import TensorSpec
from ckptkit.base.text import escaped
from ckptkit.rules.naming import opened
from ckptkit.rules.structure import Match, Question, Sure, worst
from ckptkit.rules.turning import Turn, full, named

_PLACEHOLDERS = "ijklmpqrstuv"
_COUNTED = "n"
"""The placeholder of the parts of a stack; no axis is called so."""
_PARTS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Draft:
    """One rule as it is written, and what it was made from."""

    keys: Mapping[str, object]  # of the file, in its order, without `sure`
    sure: Sure
    matches: tuple[Match, ...] = ()
    question: int | None = None
    targets: tuple[str, ...] = ()  # tensors that it makes
    sources: tuple[str, ...] = ()

    @property
    def rounded(self) -> str | None:
        """The element type up to rounding to which the values are the same; None where they are."""
        return self.matches[0].rounded if self.matches else None

    @property
    def line(self) -> str:
        """Its line in the file."""
        keys = {**self.keys, "sure": self.sure}
        rounded = f"  # up to rounding to {self.rounded}" if self.rounded else ""
        return f"  - {{{', '.join(f'{key}: {_yaml(value)}' for key, value in keys.items())}}}{rounded}"


@dataclass(frozen=True)
class DraftIgnore:
    """What of the source is left out."""

    name: str
    pattern: str
    reason: str
    tensors: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Its line in the file."""
        keys = {"name": self.name, "pattern": self.pattern, "reason": self.reason}
        return f"  - {{{', '.join(f'{key}: {_quoted(value)}' for key, value in keys.items())}}}"


def _quoted(text: str) -> str:
    """A string of YAML in which nothing is hidden: controls and signs that turn the direction are codes."""
    plain = json.dumps(text, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in plain)


def _yaml(value: object) -> str:
    if isinstance(value, str):
        return value if value.isalpha() and value.isascii() and value not in _YAML_WORDS else _quoted(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_yaml(one) for one in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_yaml(key)}: {_yaml(one)}' for key, one in value.items())}}}"
    return json.dumps(value)


_YAML_WORDS = frozenset(
    {
        "true",
        "false",
        "null",
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "True",
        "False",
        "Null",
        "Yes",
        "No",
        "On",
        "Off",
        "Y",
        "N",
        "TRUE",
        "FALSE",
        "NULL",
        "YES",
        "NO",
        "ON",
        "OFF",
    }
)


# -- grouping ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One match with the names that its rule will have."""

    match: Match
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    stars: tuple[tuple[int, int], ...] = ()  # which names, and which numbers of them, count a stack's parts

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.sources, *self.targets)


def drafts_of(
    matches: Sequence[Match], source: Mapping[str, TensorSpec], target: Mapping[str, TensorSpec]
) -> list[Draft]:
    """The rules that say the same as some matches."""
    groups: defaultdict[tuple[object, ...], list[_Row]] = defaultdict(list)
    for match in matches:
        plain = _in_full(match, source, target)
        if plain.over is not None and _interleaved(plain, _part_shape(plain, source, target)) is None:
            continue
        row = _row(plain)
        if row is None:
            continue
        key = (
            plain.operation,
            plain.axis,
            plain.over,
            plain.along,
            plain.rounded and (plain.rounded, target[plain.targets[0]].dtype.name),
            plain.turn.source,
            plain.turn.target,
            _parts(plain, source, target),
            tuple(opened(name)[0] for name in row.names),
            len(row.sources),
            row.stars,
            plain.sure == "ambiguous",
        )
        groups[key].append(row)
    generaliser = _Generaliser(source, target)
    drafts = [draft for rows in groups.values() for draft in generaliser.drafts(rows)]
    places = {name: at for at, name in enumerate(target)}
    return sorted(drafts, key=lambda draft: min(places[name] for name in draft.targets))


def _in_full(match: Match, source: Mapping[str, TensorSpec], target: Mapping[str, TensorSpec]) -> Match:
    """The same with letters for axes that happen to have length one, so that its rule is that of its like."""
    if match.operation != "one" or match.turn.is_identity:
        return match
    a, b = source[match.sources[0]].shape, target[match.targets[0]].shape
    return replace(match, turn=full(match.turn, a, b))


def _row(match: Match) -> _Row | None:
    if match.operation not in ("stack", "unstack"):
        return _Row(match, match.sources, match.targets)
    stack = match.operation == "stack"
    many = match.sources if stack else match.targets
    start = 0 if stack else len(match.sources)
    stars = []
    for place, first in enumerate(many[: match.each]):
        pieces, numbers = opened(first)
        others = [opened(name) for name in many[place :: match.each]]
        differ = [at for at in range(len(numbers)) if len({texts[at] for _, texts in others}) > 1]
        if len(differ) != 1 or any(piece != pieces for piece, _ in others):
            return None
        stars.append((start + place, differ[0]))
    firsts = many[: match.each]
    return _Row(match, firsts if stack else match.sources, match.targets if stack else firsts, tuple(stars))


def _parts(
    match: Match, source: Mapping[str, TensorSpec], target: Mapping[str, TensorSpec]
) -> tuple[int, ...]:
    """Lengths of the parts along the axis of the fused tensor, where they are not all the same."""
    forward = match.operation in ("concat", "stack")
    axis = match.along if match.each > 1 else match.axis
    if match.operation == "one" or axis is None or match.over or len(match.sources + match.targets) < 3:
        return ()
    if match.operation in ("stack", "unstack") and match.each == 1:
        return ()
    fused = target[match.targets[0]] if forward else source[match.sources[0]]
    parts = [source[n] for n in match.sources] if forward else [target[n] for n in match.targets]
    if match.each > 1:
        parts = parts[: match.each]
    if len({part.size for part in parts}) == 1:
        return ()
    rest = fused.size // fused.shape[axis] // (fused.shape[match.axis or 0] if match.each > 1 else 1)
    return tuple(part.size // rest for part in parts)


class _Generaliser:
    """Makes rules of rows that differ in numbers alone."""

    def __init__(self, source: Mapping[str, TensorSpec], target: Mapping[str, TensorSpec]) -> None:
        self._specs = source, target
        self._names: tuple[dict[tuple[str, ...], list[str]], ...] = tuple(
            _by_pieces(side) for side in (source, target)
        )

    def drafts(self, rows: Sequence[_Row]) -> list[Draft]:
        """As few rules as are right."""
        sizes = self._sizes(rows)
        if sizes is None:
            axis = _most_alike([dict(row.match.turn.lengths) for row in rows])
            split: defaultdict[int, list[_Row]] = defaultdict(list)
            for row in rows:
                split[dict(row.match.turn.lengths).get(axis, 0)].append(row)
            return [draft for part in split.values() for draft in self.drafts(part)]
        for from_zero in (False, True):
            written = _written(rows, from_zero=from_zero)
            if written is not None and self._exact(rows, written):
                return [self._draft(rows, written.texts, sizes)]
        at = _to_close(rows)
        values: defaultdict[str, list[_Row]] = defaultdict(list)
        for row in rows:
            values[_numbers(row)[at]].append(row)
        return [draft for part in values.values() for draft in self.drafts(part)]

    def _sizes(self, rows: Sequence[_Row]) -> dict[str, int] | None:
        """Lengths of merged axes that the rule must give; None if the rows need different ones."""
        turn = rows[0].match.turn
        lengths = [dict(row.match.turn.lengths) for row in rows]
        sizes: dict[str, int] = {}
        for pattern, needed in ((turn.source, True), (turn.target, False)):
            for letters in _merged(pattern):
                same = [letter for letter in letters if len({one[letter] for one in lengths}) == 1]
                if len(same) < len(letters) - 1:
                    if needed:
                        return None
                    continue
                sizes |= {letter: lengths[0][letter] for letter in same[: len(letters) - 1]}
        return sizes

    def _exact(self, rows: Sequence[_Row], written: _Written) -> bool:
        """Whether the rule fits no other tensor, read forwards or backwards."""
        for side in (0, 1):
            own = {name for row in rows for name in (row.match.targets if side else row.match.sources)}
            count = len(rows[0].sources)
            for place, name in enumerate(rows[0].names):
                if (place >= count) != bool(side):
                    continue
                for other in self._names[side].get(opened(name)[0], ()):
                    if other not in own and written.fits(place, other):
                        return False
        return True

    def _draft(self, rows: Sequence[_Row], texts: Sequence[str], sizes: Mapping[str, int]) -> Draft:
        match = rows[0].match
        count = len(rows[0].sources)
        left, right = list(texts[:count]), list(texts[count:])
        keys: dict[str, object] = {
            "source": left[0] if len(left) == 1 else left,
            "target": right[0] if len(right) == 1 else right,
        }
        if match.operation != "one":
            keys["op"] = match.operation
        keys |= self._axes(match, sizes)
        if match.rounded is not None:
            keys["dtype"] = self._specs[1][match.targets[0]].dtype.name
        return Draft(
            keys,
            worst(*(row.match.sure for row in rows)),
            tuple(row.match for row in rows),
            next((row.match.question for row in rows if row.match.question is not None), None),
            tuple(name for row in rows for name in row.match.targets),
            tuple(name for row in rows for name in row.match.sources),
        )

    def _axes(self, match: Match, sizes: Mapping[str, int]) -> dict[str, object]:
        turn = named(match.turn)
        renamed = dict(
            zip((name for name, _ in match.turn.lengths), (name for name, _ in turn.lengths), strict=True)
        )
        own = {renamed[name]: n for name, n in sizes.items()}
        keys: dict[str, object] = {}
        stacked = match.operation in ("stack", "unstack")
        if match.over is not None:
            return _interleaved(match, self._part_shape(match)) or {}
        if stacked:
            keys["over"] = _COUNTED
        if match.operation != "one" and (axis := match.along if stacked else match.axis) is not None:
            keys["axis"] = axis
        if parts := _parts(match, *self._specs):
            keys["parts"] = list(parts)
        if stacked and not (turn.is_identity and match.axis == 0):
            forward = match.operation == "stack"
            keys["axes"] = _with_axis(turn, match.axis or 0, self._part_shape(match), of_target=forward)
        elif not turn.is_identity:
            keys["axes"] = turn.axes
        if own and "axes" in keys:
            keys["sizes"] = own
        return keys

    def _part_shape(self, match: Match) -> Shape:
        return _part_shape(match, *self._specs)


def _part_shape(match: Match, source: Mapping[str, TensorSpec], target: Mapping[str, TensorSpec]) -> Shape:
    forward = match.operation in ("concat", "stack")
    return (source[match.sources[0]] if forward else target[match.targets[0]]).shape


def _by_pieces(specs: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    found: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in specs:
        found[opened(name)[0]].append(name)
    return found


def _numbers(row: _Row) -> list[str]:
    """Every number of every name, as it is written."""
    return [text for name in row.names for text in opened(name)[1]]


def _places(row: _Row) -> list[tuple[int, int]]:
    """Which name, and which of its numbers, each of them is."""
    return [(place, at) for place, name in enumerate(row.names) for at in range(len(opened(name)[1]))]


@dataclass(frozen=True)
class _Slot:
    """One number in one name: written out, or a placeholder and what is added to it."""

    text: str = ""
    placeholder: str = ""
    offset: int = 0
    width: int = 0

    @property
    def pattern(self) -> str:
        """As the file has it."""
        if not self.placeholder:
            return self.text
        added = f"{self.offset:+d}" if self.offset else ""
        width = f":0{self.width}" if self.width else ""
        return f"{{{self.placeholder}{added}{width}}}"


@dataclass(frozen=True)
class _Written:
    """The names of a rule."""

    texts: tuple[str, ...]
    slots: tuple[tuple[_Slot, ...], ...]

    def fits(self, place: int, name: str) -> bool:
        """Whether a name that differs in numbers alone fits."""
        values: dict[str, int] = {}
        for slot, text in zip(self.slots[place], opened(name)[1], strict=True):
            if not slot.placeholder:
                if slot.text != text:
                    return False
                continue
            number = int(text) - slot.offset
            if number < max(0, -slot.offset) or values.setdefault(slot.placeholder, number) != number:
                return False
        return True


def _written(rows: Sequence[_Row], *, from_zero: bool) -> _Written | None:
    """Names with placeholders for the numbers that differ; None where these do not determine each other.

    A placeholder is the target's own number, or counts from the first of the rows.
    """
    slots: dict[tuple[int, int], _Slot] = {}
    classes = _varying(rows)
    if len(classes) > len(_PLACEHOLDERS):
        return None
    for placeholder, members in zip(_PLACEHOLDERS, classes, strict=False):
        found = _slots(rows, members, placeholder, from_zero=from_zero)
        if found is None:
            return None
        slots |= found
    match = rows[0].match
    many = match.sources if match.operation == "stack" else match.targets
    for n, star in enumerate(rows[0].stars):
        texts = [opened(name)[1][star[1]] for name in many[n :: match.each]]
        width = _width(texts)
        if width is None:
            return None
        slots[star] = _Slot("", _COUNTED, int(texts[0]), width)
    names, all_slots = [], []
    for place, name in enumerate(rows[0].names):
        pieces, written = opened(name)
        own = tuple(slots.get((place, at), _Slot(text)) for at, text in enumerate(written))
        text = _escaped(pieces[0])
        for slot, piece in zip(own, pieces[1:], strict=True):
            text += slot.pattern + _escaped(piece)
        names.append(text)
        all_slots.append(own)
    return _Written(tuple(names), tuple(all_slots))


def _varying(rows: Sequence[_Row]) -> list[list[int]]:
    """Numbers that differ between rows, those together that always differ by the same."""
    numbers, places, stars = [_numbers(row) for row in rows], _places(rows[0]), rows[0].stars
    classes: dict[tuple[int, ...], list[int]] = {}
    for at, place in enumerate(places):
        values = [int(row[at]) for row in numbers]
        if place not in stars and len(set(values)) > 1:
            classes.setdefault(tuple(value - values[0] for value in values), []).append(at)
    return sorted(classes.values(), key=lambda one: one[0])


def _slots(
    rows: Sequence[_Row], members: list[int], placeholder: str, *, from_zero: bool
) -> dict[tuple[int, int], _Slot] | None:
    """One placeholder for all names; None if a name does not have it."""
    numbers, places = [_numbers(row) for row in rows], _places(rows[0])
    if {places[at][0] for at in members} != set(range(len(rows[0].names))):
        return None
    last = members[-1]  # the target's
    base = int(numbers[0][last]) - (min(int(row[last]) for row in numbers) if from_zero else 0)
    written = {at: [row[at] for row in numbers] for at in members}
    if all(texts == written[last] for texts in written.values()) and not from_zero:
        return {places[at]: _Slot("", placeholder) for at in members}  # the same digits on both sides
    widths = {at: _width(texts) for at, texts in written.items()}
    return (
        {
            places[at]: _Slot("", placeholder, int(numbers[0][at]) - base, width)
            for at, width in widths.items()
            if width is not None
        }
        if None not in widths.values()
        else None
    )


def _width(texts: Sequence[str]) -> int | None:
    """The number of digits to which numbers are padded; 0 for none, None where they differ in that."""
    padded = {len(text) for text in texts if len(text) > 1 and text.startswith("0")}
    if not padded:
        return 0
    width = max(padded)
    return width if width < 10 and all(f"{int(text):0{width}}" == text for text in texts) else None


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _to_close(rows: Sequence[_Row]) -> int:
    """The number to write out next: one without a counterpart, then that with the fewest values."""
    numbers = [_numbers(row) for row in rows]
    places = _places(rows[0])
    count = len(rows[0].names)
    varying: list[tuple[bool, int, int]] = []
    linked: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
    for at in range(len(places)):
        values = [int(row[at]) for row in numbers]
        linked[tuple(value - values[0] for value in values)].add(places[at][0])
    for at in range(len(places)):
        values = [int(row[at]) for row in numbers]
        if len(set(values)) > 1:
            whole = linked[tuple(value - values[0] for value in values)] == set(range(count))
            varying.append((whole, len(set(values)), -at))
    return -min(varying)[2]


def _most_alike(lengths: Sequence[Mapping[str, int]]) -> str:
    """The axis whose length differs least."""
    return min(
        (name for name in lengths[0] if len({one.get(name) for one in lengths}) > 1),
        key=lambda name: len({one.get(name) for one in lengths}),
    )


def _merged(pattern: str) -> list[list[str]]:
    """The letters of each merged axis."""
    return [part.split(")")[0].split() for part in pattern.split("(")[1:]]


def _with_axis(turn: Turn, axis: int, part: Shape, *, of_target: bool) -> str:
    """The patterns of a stack: those of a part, with the axis of the parts on the one side."""
    if turn.is_identity:
        letters = list("abcdefghijklm"[: len(part)])
        source = target = letters
    else:
        source, target = _axes_of(turn.source), _axes_of(turn.target)
    if of_target:
        target = [*target[:axis], _COUNTED, *target[axis:]]
    else:
        source = [*source[:axis], _COUNTED, *source[axis:]]
    return f"{' '.join(source)} -> {' '.join(target)}"


def _axes_of(pattern: str) -> list[str]:
    found, inside = [], ""
    for word in pattern.split():
        inside = f"{inside} {word}".strip()
        if inside.count("(") == inside.count(")"):
            found.append(inside)
            inside = ""
    return found


def _interleaved(match: Match, shape: Shape) -> dict[str, object] | None:
    """Keys of a rule for parts that are together head by head; None where its axes cannot say that."""
    heads = int(match.over or 1)
    forward = match.operation == "concat"
    over = _PARTS.get(len(match.sources if forward else match.targets), "parts")
    lengths = dict(match.turn.lengths)
    plain = " ".join("abcdefghijklm"[: len(shape)])
    source, target = (match.turn.source, match.turn.target) if not match.turn.is_identity else (plain, plain)
    fused, part = (target, source) if forward else (source, target)
    axes = _axes_of(fused)
    group = axes[match.axis or 0].strip("()").split()
    if len(group) == 1 and group != ["1"]:
        axes[match.axis or 0] = f"(heads {over} dim)"
        part = " ".join(_replaced(one, group[0]) for one in _axes_of(part))
        sizes = {"heads": heads}
    elif lengths.get(group[0]) == heads:
        axes[match.axis or 0] = f"({group[0]} {over} {' '.join(group[1:])})"
        sizes = {group[0]: heads}
    else:
        return None
    sizes |= {
        letter: lengths[letter]
        for pattern in (part, " ".join(axes))
        for letters in _merged(pattern)
        for letter in letters[1:]
        if letter in lengths and letters[0] not in ("heads", group[0])
    }
    whole = " ".join(axes)
    return {"over": over, "axes": f"{part} -> {whole}" if forward else f"{whole} -> {part}", "sizes": sizes}


def _replaced(axis: str, letter: str) -> str:
    if axis == letter:
        return "(heads dim)"
    return axis.replace(letter, "heads dim") if letter in axis.strip("()").split() else axis


@dataclass(frozen=True)
class Drafted:
    """A whole file of rules with all that is known of it."""

    drafts: tuple[Draft, ...]
    ignores: tuple[DraftIgnore, ...] = ()
    questions: tuple[Question, ...] = ()
    uncovered: tuple[TensorSpec, ...] = ()  # of the target
    unused: tuple[TensorSpec, ...] = ()  # of the source
    heading: Sequence[str] = field(default_factory=tuple)

    @property
    def text(self) -> str:
        """The file."""
        lines = [*(f"# {escaped(line)}" for line in self.heading), "version: 2", "rules:"]
        asked: set[int] = set()
        for draft in self.drafts:
            if draft.question is not None and draft.question not in asked:
                asked.add(draft.question)
                asked_here = _comment(self.questions[draft.question], draft)
                lines += [f"  # {escaped(line)}" for line in asked_here]
            lines.append(draft.line)
        if self.ignores:
            lines.append("ignore:")
            lines += [ignore.line for ignore in self.ignores]
        lines += _listed("not covered, of the target", self.uncovered)
        lines += _listed("not used, of the source", self.unused)
        return "\n".join(lines) + "\n"


def _comment(question: Question, draft: Draft) -> list[str]:
    lines = [f"question: {question.text}"]
    turns = next((match.others for match in draft.matches if match.others), ())
    if question.sources and len(question.sources) + len(question.targets) > 2:
        lines.append(f"  of the source: {', '.join(question.sources)}")
        lines.append(f"  of the target: {', '.join(question.targets)}")
    elif turns:
        lines.append(f"  or: {'; '.join(_choice(turn) for turn in turns[:6])}")
    lines.append("  when it is answered, delete 'sure: ambiguous'")
    return lines


def _choice(turn: Turn) -> str:
    return "no change of axes" if turn.is_identity else f'axes: "{named(turn).axes}"'


_MOST_LISTED = 200


def _listed(what: str, specs: Sequence[TensorSpec]) -> list[str]:
    if not specs:
        return []
    lines = [f"# {what}:"]
    lines += [f"#   {_quoted(spec.name)} {list(spec.shape)}" for spec in specs[:_MOST_LISTED]]
    if len(specs) > _MOST_LISTED:
        lines.append(f"#   and {len(specs) - _MOST_LISTED:,} more")
    return lines
