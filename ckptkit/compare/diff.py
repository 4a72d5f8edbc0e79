"""What differs between two checkpoints, whatever their formats and layouts; no framework is needed.

Two files of one family are paired through the family's canonical names, so that neither format nor layout
nor axis order makes a difference; whatever is left over is paired by its plain name. Any other two files
are paired by plain names, or by a user's rules, which say what each tensor of the first is called in the
second and how it is made of others.

What only one of two files of a family has is not a difference when a named rule explains it (a step counter,
optimizer slots, the copy of the weights that was not chosen): conversions leave such tensors out. It is
listed all the same, and counts when everything is asked for.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ckptkit.base.errors import ConversionError, NotFoundError, UsageError, listed
from ckptkit.base.progress import Progress, no_progress
from ckptkit.base.shown import Column, Note, Piece, Shown, Table, sections
from ckptkit.base.tensors import Array, TensorSpec
from ckptkit.base.text import counted, shape_text
from ckptkit.compare.arrays import Tolerance, ValueDifference, compare_arrays, compare_bytes
from ckptkit.families.binding import FileFacts, Match, Weights, match
from ckptkit.families.recognition import Recognition, recognise
from ckptkit.formats.base import bytes_of
from ckptkit.rules.language import IDENTITY, Binding, Op
from ckptkit.workspace import Located

if TYPE_CHECKING:
    from ckptkit.convert.planning import AnyMove
    from ckptkit.formats.base import Reader
    from ckptkit.rules.mapping import RuleFile

# -- what a comparison found ---------------------------------------------------------------------------------

Kind = Literal["shape", "dtype", "values"]
PairedBy = Literal["architecture", "names", "rules"]


@dataclass(frozen=True)
class Side:
    """One of the two files."""

    name: str  # the entry's id, or the path
    path: Path  # where the tensors were read
    format: str  # the container
    family: str | None
    variant: str | None
    layout: str | None
    weights: str | None  # "ema" or "raw": which copy was taken where the file holds both
    state_dict: str | None  # which state dict was read, in a PyTorch file with several
    tensors: int
    left_out: Mapping[str, str] = field(default_factory=dict)  # tensors that cannot be read, and why not
    also: Mapping[str, str] = field(default_factory=dict)  # what else is in the file, in a few words each

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class OnlyInOne:
    """A tensor that only one of the files has."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    canonical: str | None = None  # its canonical name, where it is one of a known architecture's
    remark: str = ""  # what is known of it
    by_rule: bool = field(default=False, compare=False)  # a named rule explains why the other lacks it

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes; the list it is in tells whether a rule explains it."""
        return {key: value for key, value in asdict(self).items() if key != "by_rule"}


@dataclass(frozen=True)
class Changed:
    """A tensor that differs between the files."""

    name: str  # what both files call it, else its canonical name
    kind: Kind  # the first that differs
    name_a: str
    name_b: str
    shape_a: tuple[int, ...]  # axes as compared: in the files' own order if they agree, else canonical
    shape_b: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    values: ValueDifference | None = None  # None where shapes, or an opaque type, rule a comparison out
    tolerated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return {**asdict(self), "values": self.values.to_json() if self.values else None}


@dataclass(frozen=True)
class OtherMetadata:
    """A metadata key whose values differ."""

    key: str
    a: str | None
    b: str | None
    counts: bool = True  # False for what only tells how a file was made


@dataclass(frozen=True, repr=False)
class Difference(Shown):
    """Everything that differs between two files."""

    a: Side
    b: Side
    paired_by: PairedBy
    paired: int  # tensors that both files have
    identical: int  # those of them that agree in shape, type and, unless names only, every bit
    only_a: tuple[OnlyInOne, ...]
    only_b: tuple[OnlyInOne, ...]
    left_out_a: tuple[OnlyInOne, ...]  # only in one, and explained by a named rule: these do not count
    left_out_b: tuple[OnlyInOne, ...]
    changed: tuple[Changed, ...]  # worst first: values that no tolerance covers, then by relative difference
    metadata: tuple[OtherMetadata, ...]  # empty unless asked for
    tolerance: Tolerance
    names_only: bool = False  # names, shapes and types were compared, and no values
    only: str | None = None  # the pattern that chose the tensors looked at; None for all
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs that counts."""
        return not (
            self.only_a
            or self.only_b
            or self.a.left_out
            or self.b.left_out
            or any(not one.tolerated for one in self.changed)
            or any(one.counts for one in self.metadata)
        )

    def of_kind(self, kind: Kind) -> tuple[Changed, ...]:
        """Tensors that differ in this way by more than the tolerance."""
        return tuple(one for one in self.changed if one.kind == kind and not one.tolerated)

    @property
    def tolerated(self) -> tuple[Changed, ...]:
        """Tensors that differ by no more than the tolerance."""
        return tuple(one for one in self.changed if one.tolerated)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors there are of each sort."""
        return {
            "paired": self.paired,
            "identical": self.identical,
            "tolerated": len(self.tolerated),
            "only_in_a": len(self.only_a),
            "only_in_b": len(self.only_b),
            "not_read_in_a": len(self.a.left_out),
            "not_read_in_b": len(self.b.left_out),
            "other_shape": len(self.of_kind("shape")),
            "other_dtype": len(self.of_kind("dtype")),
            "other_values": len(self.of_kind("values")),
            "left_out_a": len(self.left_out_a),
            "left_out_b": len(self.left_out_b),
            "other_metadata": sum(one.counts for one in self.metadata),
        }

    @property
    def verdict(self) -> str:
        """All of it in one line."""
        counts = self.counts
        found = [f"{counts[f'only_in_{x}']:,} only in {x.upper()}" for x in "ab" if counts[f"only_in_{x}"]]
        for side in "ab":
            if unread := counts[f"not_read_in_{side}"]:
                found.append(f"{unread:,} in {side.upper()} cannot be read")
        for kind in ("shape", "dtype", "values"):
            if count := counts[f"other_{kind}"]:
                of = f"of {counted(self.paired, 'tensor')} in both"
                found.append(f"{count:,} {of} {'has' if count == 1 else 'have'} other {kind}")
        if counts["other_metadata"]:
            found.append(f"metadata ({counts['other_metadata']:,})")
        if found:
            return f"differ: {'; '.join(found)}{self._describe_tolerated('; besides, ')}"
        if self.names_only:
            same = f"same names, shapes and types: {counted(self.paired, 'tensor')}"
            return f"{same}; values not compared{self._describe_left_out()}"
        exact = f"{self.identical:,} bit for bit" if self.tolerated else "bit for bit"
        tolerated = self._describe_tolerated(", ")
        return f"same: {counted(self.paired, 'tensor')}, {exact}{tolerated}{self._describe_left_out()}"

    def _describe_tolerated(self, before: str) -> str:
        if not self.tolerated:
            return ""
        most = max(one.values.max_abs for one in self.tolerated if one.values)
        return f"{before}{len(self.tolerated):,} within the tolerance (max abs {most:.3g})"

    def _describe_left_out(self) -> str:
        sides = [
            f"{len(left_out):,} in {name}"
            for name, left_out in (("A", self.left_out_a), ("B", self.left_out_b))
            if left_out
        ]
        return f"; left out by rule: {', '.join(sides)}" if sides else ""

    @property
    def headline(self) -> str:
        """The result in one line."""
        return f"{self.a.name}, {self.b.name}: {self.verdict}"

    def pieces(self, *, everything: bool = False, tensors: bool = True) -> Iterator[Piece]:
        """The verdict, what was compared, a table for each kind of difference, and the notes."""
        yield self.verdict
        yield from (f"{heading:<10}{text}" for heading, text in _difference_lines(self))
        lists = []
        if tensors:
            lists = [
                _lone_section("only in A", self.only_a),
                _lone_section("only in B", self.only_b),
                _unread_section("cannot be read in A", self.a.left_out),
                _unread_section("cannot be read in B", self.b.left_out),
                *(
                    _changed_section(f"other {kind}", self.of_kind(kind), everything)
                    for kind in get_args(Kind)
                ),
            ]
        if tensors and everything:
            lists += [
                _changed_section("within the tolerance", self.tolerated, everything),
                _lone_section("left out by rule, in A", self.left_out_a),
                _lone_section("left out by rule, in B", self.left_out_b),
            ]
        lists.append(_other_metadata_section(self.metadata))
        yield from sections(lists, everything=everything)
        yield from (Note(f"note: {note}") for note in self.notes)

    def to_json(self, *, tensors: bool = True) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes; ``tensors=False`` leaves out every list of tensors."""
        values: dict[str, Any] = {
            "same": self.same,
            "verdict": self.verdict,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "paired_by": self.paired_by,
            "tolerance": asdict(self.tolerance),
            "names_only": self.names_only,
            "only": self.only,
            "counts": self.counts,
            "metadata": [asdict(one) for one in self.metadata],
            "notes": list(self.notes),
        }
        if tensors:
            values |= {
                "only_in_a": [one.to_json() for one in self.only_a],
                "only_in_b": [one.to_json() for one in self.only_b],
                "left_out_a": [one.to_json() for one in self.left_out_a],
                "left_out_b": [one.to_json() for one in self.left_out_b],
                "changed": [one.to_json() for one in self.changed],
            }
        return values


_Section = tuple[str, Table]


def _difference_lines(found: Difference) -> list[tuple[str, str]]:
    by = {"architecture": "by their place in the architecture, others by name", "rules": "by the rules"}
    lines = [
        ("A", _described(found.a)),
        ("B", _described(found.b)),
        ("paired", f"{counted(found.paired, 'tensor')} {by.get(found.paired_by, 'by name')}"),
    ]
    if found.only is not None:
        lines.append(("looked at", f"only what matches {found.only!r}"))
    for side, left_out in (("A", found.left_out_a), ("B", found.left_out_b)):
        for remark, count in Counter(one.remark for one in left_out).items():
            lines.append(("left out", f"{count:,} in {side}, {remark}"))
    return lines


def _described(side: Side) -> str:
    parts = [side.format]
    parts += [f"{side.variant}, layout {side.layout}"] if side.variant else ["no architecture known here"]
    parts += [f"{side.weights} weights"] if side.weights else []
    parts += [f"state dict {side.state_dict}"] if side.state_dict else []
    return f"{side.name}: {', '.join(parts)}, {counted(side.tensors, 'tensor')}"


def _lone_section(heading: str, lone: Sequence[OnlyInOne]) -> _Section:
    columns = [Column("tensor"), Column("shape"), Column("dtype"), Column("remark")]
    return heading, Table(columns, [[one.name, shape_text(one.shape), one.dtype, one.remark] for one in lone])


def _unread_section(heading: str, left_out: Mapping[str, str]) -> _Section:
    return heading, Table([Column("tensor"), Column("reason")], [[*pair] for pair in left_out.items()])


def _changed_section(heading: str, changed: Sequence[Changed], everything: bool) -> _Section:
    other_type = any(one.dtype_a != one.dtype_b or one.shape_a != one.shape_b for one in changed)
    figures = any(one.values for one in changed)
    columns = [Column("tensor")]
    columns += [Column("called in A"), Column("called in B")] if everything else []
    columns += [Column("in A"), Column("in B")] if other_type else [Column("shape")]
    if figures:
        columns += [Column("max abs", numeric=True), Column("relative", numeric=True)]
        columns += [Column("differing", numeric=True), Column("remark")]
    rows = []
    for one in changed:
        row = [one.name]
        row += [one.name_a, one.name_b] if everything else []
        row += (
            [f"{shape_text(one.shape_a)} {one.dtype_a}", f"{shape_text(one.shape_b)} {one.dtype_b}"]
            if other_type
            else [shape_text(one.shape_a)]
        )
        rows.append(row + _figures(one, where=everything) if figures else row)
    return heading, Table(columns, rows)


def _figures(changed: Changed, *, where: bool) -> list[str]:
    values = changed.values
    if values is None:
        return ["–", "–", "–", ""]
    remarks = [values.remark] if values.remark else []
    if where and values.at is not None and values.values is not None:
        remarks.append(f"largest at {list(values.at)}: {values.values[0]:g} and {values.values[1]:g}")
    return [
        "–" if values.in_bytes else f"{values.max_abs:.3g}",
        "–" if values.in_bytes or values.relative is None else f"{values.relative:.3g}",
        f"{values.differing:,} of {values.elements:,}",
        "; ".join(remarks),
    ]


def _other_metadata_section(metadata: Sequence[OtherMetadata]) -> _Section:
    columns = [Column("key"), Column("in A"), Column("in B"), Column("remark")]
    rows = [
        [
            one.key,
            "–" if one.a is None else one.a,
            "–" if one.b is None else one.b,
            "" if one.counts else "does not count: how the file was made",
        ]
        for one in metadata
    ]
    return "other metadata", Table(columns, rows)


# -- one of the two files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened(AbstractContextManager["Opened"]):
    """One of the two files: open, recognised, and matched to its architecture."""

    located: Located
    reader: Reader  # closed at the end of the `with` block
    recognition: Recognition | None
    weights: Weights  # which copy is wanted where the file holds both

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    @property
    def name(self) -> str:
        """What to call it: the entry's id, else the path."""
        return self.located.name

    def match(self, recognition: Recognition) -> Match:
        """Set the file's tensors against its architecture."""
        specs, known = self.reader.specs, FileFacts.of(self.reader, self.located.entry)
        try:
            return match(specs, recognition, weights=self.weights, known=known)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error.message}", hint=error.hint) from error
        except ConversionError as error:
            if self.weights != "auto":
                raise ConversionError(f"{self.name}: {error.message}", hint=error.hint) from error
            # That copy was the default; what is there whole can be compared.
            second = recognition.table.layout.second_copy
            return match(specs, recognition, weights=second.plain if second else "raw", known=known)

    def refuse_weights(self) -> None:
        """Raise UsageError when a copy is asked for and nothing tells which tensors it is made of."""
        if self.weights != "auto" and self.reader.weights is None:
            raise UsageError(
                f"{self.name}: cannot tell which of its tensors are {self.weights}",
                hint="--weights needs files of one known family, and no --layout as-is",
            )

    def side(self, found: Match | None) -> Side:
        """What to report of the file."""
        known = self.recognition
        return Side(
            name=self.name,
            path=self.located.path,
            format=self.reader.format,
            family=known.family.name if known else None,
            variant=known.variant if known else None,
            layout=known.layout if known else None,
            weights=found.weights if found else self.reader.weights,
            state_dict=self.reader.state_dict if len(self.reader.state_dicts) > 1 else None,
            tensors=len(self.reader.specs),
            left_out=dict(self.reader.left_out),
            also=dict(self.reader.also),
        )

    def settings(self) -> dict[str, str]:
        """Settings that change the model's output, as JSON: the entry's, else the file's."""
        found = {}
        for key in self.recognition.family.settings if self.recognition else ():
            by_entry = getattr(self.located.entry, key, None)
            if by_entry is not None:
                found[key] = json.dumps(by_entry)
            elif key in self.reader.metadata:
                found[key] = self.reader.metadata[key]  # verbatim: a comparison need not understand it
        return found

    def metadata(self) -> dict[str, str]:
        """The file's metadata, and the settings of its registry entry."""
        return {**self.reader.metadata, **self.settings()}


def open_side(located: Located, weights: Weights, *, unwrap: bool = True) -> Opened:
    """Open one side of a comparison."""
    reader = located.open(weights, unwrap=unwrap)
    try:
        return Opened(located, reader, recognise(reader.specs), weights)
    except BaseException:
        reader.close()
        raise


# -- which tensor is compared with which ---------------------------------------------------------------------

_COUNTER = "step counter: counts BatchNorm's training steps, which no prediction needs"

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class AlignedTensor:
    """A tensor of a file, and how its axes are ordered for the comparison."""

    spec: TensorSpec
    op: Op | None  # to the axis order of the comparison; None when the shape does not fit the architecture
    shape: tuple[int, ...]  # in that axis order; the file's own when there is no op
    move: AnyMove | None = None  # how rules make it of the file's own tensors

    @classmethod
    def as_is(cls, spec: TensorSpec) -> AlignedTensor:
        """Axes stay as they are."""
        return cls(spec, IDENTITY, spec.shape)

    @classmethod
    def canonical(cls, spec: TensorSpec, binding: Binding) -> AlignedTensor:
        """Axes in canonical order, also for a tensor of other lengths than its binding has."""
        try:
            return cls(spec, binding.op, binding.op.inverse.external_shape(spec.shape, {}))
        except ValueError:
            return cls(spec, None, spec.shape)

    @property
    def sources(self) -> tuple[str, ...]:
        """The file's own tensors that it is made of."""
        return (self.spec.name,) if self.move is None else self.move.sources

    @property
    def called(self) -> str:
        """What it is called in the file."""
        return ", ".join(self.sources) or "–"

    def array(self, reader: Reader) -> Array:
        """The tensor in the axis order of the comparison."""
        if self.move is not None:
            return self.move.array(reader.read).astype(self.spec.dtype.numpy, copy=False)
        return self.view(reader.read(self.spec.name))

    def view(self, array: Array) -> Array:
        """The file's own tensor in that order."""
        return array if self.op is None else self.op.to_canonical(array, self.shape)


@dataclass(frozen=True)
class Pair:
    """Two tensors that are the same one in two files."""

    name: str  # what both files call it, else its canonical name
    a: AlignedTensor
    b: AlignedTensor
    canonical: str | None = None

    @property
    def comparable(self) -> bool:
        """Whether the elements can be set against each other one by one; of an opaque type, the bytes."""
        if self.opaque and (
            self.a.spec.dtype != self.b.spec.dtype
            or self.a.spec.nbytes != self.b.spec.nbytes
            or not self.a.op == self.b.op == IDENTITY
        ):
            return False
        return self.a.op is not None and self.b.op is not None and self.a.shape == self.b.shape

    @property
    def opaque(self) -> bool:
        """Whether one of them is of a type of which only the bytes are known."""
        return self.a.spec.dtype.is_opaque or self.b.spec.dtype.is_opaque


@dataclass(frozen=True)
class Pairing:
    """Every tensor of two files: with its counterpart, or alone."""

    pairs: tuple[Pair, ...]
    only_a: tuple[OnlyInOne, ...] = field(default=())
    only_b: tuple[OnlyInOne, ...] = field(default=())


def pair_by_name(a: Specs, b: Specs) -> Pairing:
    """Pair the tensors that have one name in both files, axes as they are.

    Examples
    --------
    >>> from ckptkit.base.tensors import DTYPES
    >>> one, two = (TensorSpec(name, DTYPES["float32"], (2,)) for name in ("w", "b"))
    >>> found = pair_by_name({"w": one, "b": two}, {"w": one})
    >>> [pair.name for pair in found.pairs], [one.name for one in found.only_a]
    (['w'], ['b'])
    """
    return Pairing(
        pairs=tuple(_by_name(a, b)),
        only_a=tuple(_only_in_one(spec) for name, spec in a.items() if name not in b),
        only_b=tuple(_only_in_one(spec) for name, spec in b.items() if name not in a),
    )


def pair_by_architecture(a: Specs, b: Specs, match_a: Match, match_b: Match) -> Pairing:
    """Pair the tensors of two files of one family by what they are in it, and the rest by name."""
    pairs = []
    for canonical, name_a in match_a.sources.items():
        name_b = match_b.sources.get(canonical)
        if name_b is not None:
            pairs.append(
                _aligned(
                    canonical,
                    (a[name_a], match_a.recognition.table.by_canonical[canonical]),
                    (b[name_b], match_b.recognition.table.by_canonical[canonical]),
                )
            )
    rest_a = _without(a, (pair.a.spec.name for pair in pairs))
    rest_b = _without(b, (pair.b.spec.name for pair in pairs))
    by_name = _by_name(rest_a, rest_b)
    both = {pair.name for pair in by_name}
    return Pairing(
        pairs=(*pairs, *by_name),
        only_a=_unpaired(rest_a, both, match_a),
        only_b=_unpaired(rest_b, both, match_b),
    )


def pair_by_rules(a: Reader, b: Reader, rules: RuleFile, weights: Weights = "auto") -> Pairing:
    """Pair what rules make of the first file with the second file's tensors of that name."""
    from ckptkit.convert.by_rules import plan_by_rules

    plan = plan_by_rules(a, rules, weights=weights, named=b.specs)
    made = {move.target.name: move for move in plan.moves}
    pairs = tuple(
        Pair(
            name,
            AlignedTensor(move.target, IDENTITY, move.target.shape, move),
            AlignedTensor.as_is(b.specs[name]),
        )
        for name, move in made.items()
        if name in b.specs
    )
    left_out = (
        _only_in_one(a.specs[name], None, why, by_rule=True)
        for name, why in plan.left_out.items()
        if name in a.specs
    )
    alone = (_only_in_one(move.target) for name, move in made.items() if name not in b.specs)
    only_b = (_only_in_one(spec) for name, spec in b.specs.items() if name not in made)
    return Pairing(pairs, (*alone, *left_out), tuple(only_b))


def _only_in_one(
    spec: TensorSpec, canonical: str | None = None, remark: str = "", by_rule: bool = False
) -> OnlyInOne:
    return OnlyInOne(spec.name, spec.dtype.name, spec.shape, canonical, remark, by_rule)


def _by_name(a: Specs, b: Specs) -> list[Pair]:
    return [
        Pair(name, AlignedTensor.as_is(spec), AlignedTensor.as_is(b[name]))
        for name, spec in a.items()
        if name in b
    ]


def _aligned(canonical: str, a: tuple[TensorSpec, Binding], b: tuple[TensorSpec, Binding]) -> Pair:
    name = a[0].name if a[0].name == b[0].name else canonical
    if a[1].op == b[1].op:
        return Pair(name, AlignedTensor.as_is(a[0]), AlignedTensor.as_is(b[0]), canonical)
    return Pair(name, AlignedTensor.canonical(*a), AlignedTensor.canonical(*b), canonical)


def _without(specs: Specs, names: Iterable[str]) -> dict[str, TensorSpec]:
    taken = set(names)
    return {name: spec for name, spec in specs.items() if name not in taken}


def _unpaired(rest: Specs, both: set[str], found: Match) -> tuple[OnlyInOne, ...]:
    """Tensors without counterpart, with what the family knows of them."""
    rules = {one.name: f"{one.rule}: {one.reason}" for one in found.ignored}
    unknown = dict.fromkeys(found.unexpected, f"not known to {found.recognition.variant}")
    canonical = {name: canonical for canonical, name in found.sources.items()}
    alone = []
    for name, spec in rest.items():
        if name in both:
            continue
        place = canonical.get(name)
        counter = place is not None and found.recognition.table.by_canonical[place].part == "counter"
        remark = _COUNTER if counter else rules.get(name) or unknown.get(name, "")
        alone.append(_only_in_one(spec, place, remark, by_rule=counter or name in rules))
    return tuple(alone)


# -- the comparison ------------------------------------------------------------------------------------------

LayoutChoice = Literal["auto", "as-is"]

_HOW_MADE = frozenset({"format", "layout", "ckptkit_version", "source_sha256", "source_index_sha256"})
"""Metadata that tells how a file was made and nothing of what is in it."""


@dataclass(frozen=True)
class DiffRequest:
    """How two checkpoints are compared; what ends in ``_b`` is for the second, where it differs."""

    layout: LayoutChoice = "auto"  # as-is: by plain names, whatever the layouts
    weights: Weights = "auto"
    weights_b: Weights | None = None
    state_dict: str | None = None
    state_dict_b: str | None = None
    strip_prefix: str | Sequence[str] | None = None
    strip_prefix_b: str | Sequence[str] | None = None
    only: str | None = None  # a glob, or part of a tensor's name
    everything: bool = False  # count what a rule leaves out, too
    metadata: bool = False
    tolerance: float = 0.0
    relative: float = 0.0
    ignore_dtype: bool = False
    rules: RuleFile | None = None  # what the tensors of the first are in the second
    names_only: bool = False  # read no values

    @property
    def allowed(self) -> Tolerance:
        """How far values may be apart."""
        for name, value in (("--tolerance", self.tolerance), ("--relative", self.relative)):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"invalid {name} {value}", hint="use 0 or more")
        return Tolerance(self.tolerance, self.relative, self.ignore_dtype)

    def chosen(self, a: Located, b: Located) -> tuple[Located, Located]:
        """Both files, with what of each is meant."""
        first = a.chosen(self.state_dict, self.strip_prefix)
        if self.state_dict_b is None and self.strip_prefix_b is None:
            return first, b.like(first)
        return first, b.chosen(self.state_dict_b, self.strip_prefix_b)


def compare_files(
    a: Located, b: Located, request: DiffRequest = DiffRequest(), progress: Progress = no_progress
) -> Difference:
    """Show the differences between two checkpoints of any format and layout."""
    allowed, everything = request.allowed, request.everything
    first, second = request.chosen(a, b)
    unwrap = request.layout == "auto" and request.rules is None
    with (
        open_side(first, request.weights, unwrap=unwrap) as one,
        open_side(second, request.weights_b or request.weights, unwrap=unwrap) as two,
    ):
        pairing, matches = _paired(one, two, request)
        sides = one.side(matches[0] if matches else None), two.side(matches[1] if matches else None)
        if request.only is not None:
            pairing, sides = _restricted(pairing, request.only, sides)
        if request.names_only:
            found = (_judged(pair, None, allowed, names_only=True) for pair in pairing.pairs)
            changed = tuple(sorted(filter(None, found), key=_badness))
        else:
            changed = _changed(pairing, one, two, allowed, progress)
        return Difference(
            a=sides[0],
            b=sides[1],
            paired_by="rules" if request.rules else "architecture" if matches else "names",
            paired=len(pairing.pairs),
            identical=len(pairing.pairs) - len(changed),
            only_a=tuple(t for t in pairing.only_a if everything or not t.by_rule),
            only_b=tuple(t for t in pairing.only_b if everything or not t.by_rule),
            left_out_a=tuple(t for t in pairing.only_a if t.by_rule and not everything),
            left_out_b=tuple(t for t in pairing.only_b if t.by_rule and not everything),
            changed=changed,
            metadata=tuple(_other_metadata(one, two, everything)) if request.metadata else (),
            tolerance=allowed,
            names_only=request.names_only,
            only=request.only,
            notes=tuple(_notes(one, two, pairing)),
        )


def _paired(one: Opened, two: Opened, request: DiffRequest) -> tuple[Pairing, tuple[Match, Match] | None]:
    """Pair the tensors, by rules, or through the family where both files are of the same one."""
    if request.rules is not None:
        return pair_by_rules(one.reader, two.reader, request.rules, request.weights), None
    a, b = one.recognition, two.recognition
    if request.layout == "auto" and a is not None and b is not None and a.family is b.family:
        matches = one.match(_with_parts_of(b, a)), two.match(_with_parts_of(a, b))
        return pair_by_architecture(one.reader.specs, two.reader.specs, *matches), matches
    for side in (one, two):
        side.refuse_weights()
    return pair_by_name(one.reader.specs, two.reader.specs), None


def _with_parts_of(other: Recognition, found: Recognition) -> Recognition:
    """Let a file have the optional parts that the other one has, so that the rest of such a part is known.

    A head without its bias, for one, is taken for no head, and its kernel would be known in one file alone.
    """
    structure = replace(
        found.structure,
        pos_emb=found.structure.pos_emb or other.structure.pos_emb,
        num_classes=found.structure.num_classes or other.structure.num_classes,
    )
    table = found.family.table(found.layout, found.variant, structure)
    return replace(found, structure=structure, table=table)


def _restricted(pairing: Pairing, only: str, sides: tuple[Side, Side]) -> tuple[Pairing, tuple[Side, Side]]:
    """Keep what matches a pattern, by any of its names."""
    pattern = only if any(sign in only for sign in "*?[") else f"*{only}*"

    def wanted(*names: str | None) -> bool:
        return any(name is not None and (only in name or fnmatchcase(name, pattern)) for name in names)

    kept = Pairing(
        pairs=tuple(p for p in pairing.pairs if wanted(p.name, p.canonical, p.a.called, p.b.called)),
        only_a=tuple(one for one in pairing.only_a if wanted(one.name, one.canonical)),
        only_b=tuple(one for one in pairing.only_b if wanted(one.name, one.canonical)),
    )
    a, b = (
        replace(side, left_out={name: why for name, why in side.left_out.items() if wanted(name)})
        for side in sides
    )
    if not (kept.pairs or kept.only_a or kept.only_b or a.left_out or b.left_out):
        raise NotFoundError(
            f"no tensor of {a.name} or {b.name} matches {only!r}",
            hint="give a part of a name, or a glob such as '*/kernel'",
        )
    return kept, (a, b)


# -- tensors -------------------------------------------------------------------------------------------------


def _changed(
    pairing: Pairing, one: Opened, two: Opened, allowed: Tolerance, show: Progress
) -> tuple[Changed, ...]:
    """Every pair that differs, worst first."""
    changed = []
    total = sum(pair.a.spec.nbytes for pair in pairing.pairs if pair.comparable)
    with show(f"comparing {one.name} with {two.name}", total) as advance:
        for pair in pairing.pairs:
            values = _values(pair, one, two) if pair.comparable else None
            if found := _judged(pair, values, allowed):
                changed.append(found)
            advance(pair.a.spec.nbytes if pair.comparable else 0)
    return tuple(sorted(changed, key=_badness))


def _values(pair: Pair, one: Opened, two: Opened) -> ValueDifference:
    """Compare the elements of a pair, its stored checksums verified first."""

    def rest() -> None:
        for side, tensor in ((one, pair.a), (two, pair.b)):
            for name in tensor.sources:
                side.reader.release(name)

    for side, tensor in ((one, pair.a), (two, pair.b)):
        for name in tensor.sources:
            side.reader.check(name)
    if pair.opaque:
        a, b = pair.a.sources[0], pair.b.sources[0]
        found = compare_bytes(bytes_of(one.reader, a).data, bytes_of(two.reader, b).data)
        rest()
        return found
    found = compare_arrays(pair.a.array(one.reader), pair.b.array(two.reader), rest=rest)
    rest()
    return found


def _judged(
    pair: Pair, values: ValueDifference | None, allowed: Tolerance, *, names_only: bool = False
) -> Changed | None:
    """What to report of a pair, None when every bit agrees; or, of names only, shape and type."""
    other_dtype = pair.a.spec.dtype != pair.b.spec.dtype
    if names_only and pair.comparable and (allowed.ignore_dtype or not other_dtype):
        return None
    if values is not None and values.same and not other_dtype:
        return None
    tolerated = values is not None and values.within(allowed)
    kind: Kind = "values"
    if values is None and (pair.a.shape != pair.b.shape or pair.a.op is None or pair.b.op is None):
        kind = "shape"
    elif other_dtype and (values is None or not allowed.ignore_dtype):
        kind, tolerated = "dtype", False
    return Changed(
        name=pair.name,
        kind=kind,
        name_a=pair.a.called,
        name_b=pair.b.called,
        shape_a=pair.a.shape,
        shape_b=pair.b.shape,
        dtype_a=pair.a.spec.dtype.name,
        dtype_b=pair.b.spec.dtype.name,
        values=values,
        tolerated=tolerated,
    )


def _badness(changed: Changed) -> tuple[float, float, float, str]:
    """Order of a list: what no tolerance covers, then the largest relative difference, then absolute."""
    values = changed.values
    if values is None:
        return -math.inf, 0.0, 0.0, changed.name
    relative = math.inf if values.relative is None else values.relative
    return -values.not_comparable, -relative, -values.max_abs, changed.name


# -- metadata and notes --------------------------------------------------------------------------------------


def _other_metadata(one: Opened, two: Opened, everything: bool) -> Iterator[OtherMetadata]:
    a, b = one.metadata(), two.metadata()
    for key in sorted({*a, *b}):
        if a.get(key) != b.get(key):
            yield OtherMetadata(key, a.get(key), b.get(key), counts=everything or key not in _HOW_MADE)


def _notes(one: Opened, two: Opened, pairing: Pairing) -> Iterator[str]:
    for letter, side in (("A", one), ("B", two)):
        yield from (f"{letter}: {note}" for note in side.reader.notes)
        if side.reader.also:
            yield f"{letter}: also in the file, not compared: {listed(side.reader.also)}"
    a, b = one.recognition, two.recognition
    if a is not None and b is not None and (a.family, a.variant) != (b.family, b.variant):
        yield f"A is {a.family.name} {a.variant}, B is {b.family.name} {b.variant}"
    settings_a, settings_b = one.settings(), two.settings()
    for key in settings_a.keys() & settings_b.keys():
        if settings_a[key] != settings_b[key]:
            values = f"{settings_a[key]} in A, {settings_b[key]} in B"
            yield f"{key} is {values}: models built from them compute different things"
    if not pairing.pairs and pairing.only_a and pairing.only_b:
        yield "no tensor has one name in both files"
