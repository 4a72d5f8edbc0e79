"""Which tensor of one file is compared with which of the other, and in which axis order.

Two files of one family are paired through the family's canonical names, so that neither format nor layout
nor axis order makes a difference; whatever is left over is paired by its plain name. Any other two files
are paired by plain names.

What only one of two files of a family has is no difference when a named rule explains it (a step counter,
optimizer slots, the copy of the weights that was not chosen): conversions leave such tensors out. It is
listed all the same, and counts when everything is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ckptkit.base.tensors import Array, TensorSpec
from ckptkit.families.binding import Match
from ckptkit.rules.language import IDENTITY, Binding, Op

_COUNTER = "step counter: counts BatchNorm's training steps, which no prediction needs"

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Seat:
    """A tensor of a file, and how it is turned for the comparison.

    Parameters
    ----------
    spec : TensorSpec
        As the file has it.
    op : Op or None
        Leads to the axis order of the comparison; None when the shape does not fit what it should be.
    shape : tuple of int
        In that axis order; the file's own when there is no op.
    """

    spec: TensorSpec
    op: Op | None
    shape: tuple[int, ...]

    @classmethod
    def as_is(cls, spec: TensorSpec) -> Seat:
        """Axes stay as they are."""
        return cls(spec, IDENTITY, spec.shape)

    @classmethod
    def canonical(cls, spec: TensorSpec, binding: Binding) -> Seat:
        """Axes in canonical order, also for a tensor of other lengths than its binding has."""
        try:
            return cls(spec, binding.op, binding.op.inverse.external_shape(spec.shape, {}))
        except ValueError:
            return cls(spec, None, spec.shape)

    def view(self, array: Array) -> Array:
        """The tensor in the axis order of the comparison."""
        return array if self.op is None else self.op.to_canonical(array, self.shape)


@dataclass(frozen=True)
class Pair:
    """Two tensors that are the same one in two files.

    Parameters
    ----------
    name : str
        What both files call it, else its canonical name.
    a, b : Seat
    canonical : str or None
        Its canonical name, where it is one of the architecture's.
    """

    name: str
    a: Seat
    b: Seat
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
class Single:
    """A tensor that only one file has.

    Parameters
    ----------
    spec : TensorSpec
        As the file has it.
    canonical : str or None
        Its canonical name, where it is one of the architecture's.
    remark : str
        What is known of it; empty where nothing is.
    by_rule : bool
        Whether a named rule explains why the other file lacks it.
    """

    spec: TensorSpec
    canonical: str | None = None
    remark: str = ""
    by_rule: bool = False


@dataclass(frozen=True)
class Pairing:
    """Every tensor of two files: with its counterpart, or alone."""

    pairs: tuple[Pair, ...]
    only_a: tuple[Single, ...] = field(default=())
    only_b: tuple[Single, ...] = field(default=())


def pair_by_name(a: Specs, b: Specs) -> Pairing:
    """Pair the tensors that have one name in both files, axes as they are.

    Examples
    --------
    >>> from ckptkit.base.tensors import DTYPES
    >>> one, two = (TensorSpec(name, DTYPES["float32"], (2,)) for name in ("w", "b"))
    >>> found = pair_by_name({"w": one, "b": two}, {"w": one})
    >>> [pair.name for pair in found.pairs], [single.spec.name for single in found.only_a]
    (['w'], ['b'])
    """
    return Pairing(
        pairs=tuple(_by_name(a, b)),
        only_a=tuple(Single(spec) for name, spec in a.items() if name not in b),
        only_b=tuple(Single(spec) for name, spec in b.items() if name not in a),
    )


def pair_by_architecture(a: Specs, b: Specs, match_a: Match, match_b: Match) -> Pairing:
    """Pair the tensors of two files of one family by what they are in it, and the rest by name.

    Parameters
    ----------
    a, b : mapping of str to TensorSpec
    match_a, match_b : Match
        The files' tensors set against the family; variants and layouts may differ.
    """
    pairs = []
    for canonical, name_a in match_a.sources.items():
        name_b = match_b.sources.get(canonical)
        if name_b is not None:
            pairs.append(
                _seated(
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
        only_a=_singles(rest_a, both, match_a),
        only_b=_singles(rest_b, both, match_b),
    )


def _by_name(a: Specs, b: Specs) -> list[Pair]:
    return [Pair(name, Seat.as_is(spec), Seat.as_is(b[name])) for name, spec in a.items() if name in b]


def _seated(canonical: str, a: tuple[TensorSpec, Binding], b: tuple[TensorSpec, Binding]) -> Pair:
    name = a[0].name if a[0].name == b[0].name else canonical
    if a[1].op == b[1].op:
        return Pair(name, Seat.as_is(a[0]), Seat.as_is(b[0]), canonical)
    return Pair(name, Seat.canonical(*a), Seat.canonical(*b), canonical)


def _without(specs: Specs, names: Iterable[str]) -> dict[str, TensorSpec]:
    taken = set(names)
    return {name: spec for name, spec in specs.items() if name not in taken}


def _singles(rest: Specs, both: set[str], found: Match) -> tuple[Single, ...]:
    """Tensors without counterpart, with what the family knows of them."""
    rules = {one.name: f"{one.rule}: {one.reason}" for one in found.ignored}
    unknown = dict.fromkeys(found.unexpected, f"not known to {found.recognition.variant}")
    canonical = {name: canonical for canonical, name in found.sources.items()}
    singles = []
    for name, spec in rest.items():
        if name in both:
            continue
        place = canonical.get(name)
        counter = place is not None and found.recognition.table.by_canonical[place].part == "counter"
        remark = _COUNTER if counter else rules.get(name) or unknown.get(name, "")
        singles.append(Single(spec, place, remark, by_rule=counter or name in rules))
    return tuple(singles)
