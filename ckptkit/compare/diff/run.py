"""The whole of a comparison: open both files, pair their tensors, look at each pair once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ckptkit.base.errors import NotFoundError, UsageError, listed
from ckptkit.compare.diff.opened import Opened, open_side
from ckptkit.compare.diff.pairing import Pair, Pairing, Single, pair_by_architecture, pair_by_name
from ckptkit.compare.diff.report import Changed, Difference, Kind, Lone, OtherMetadata, Side
from ckptkit.compare.diff.values import Tolerance, ValueDifference, compare_arrays, compare_bytes
from ckptkit.families.base import Recognition
from ckptkit.families.binding import Match
from ckptkit.formats.base import bytes_of
from ckptkit.workspace import Located

if TYPE_CHECKING:
    from ckptkit.families.binding import Weights
    from ckptkit.workspace import Progress

LayoutChoice = Literal["auto", "as-is"]

_HOW_MADE = frozenset({"format", "layout", "ckptkit_version", "source_sha256", "source_index_sha256"})
"""Metadata that tells how a file was made and nothing of what is in it."""


def compare_files(
    a: str | Path | Located,
    b: str | Path | Located,
    *,
    layout: LayoutChoice = "auto",
    weights: Weights = "auto",
    weights_b: Weights | None = None,
    state_dict: str | None = None,
    state_dict_b: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    strip_prefix_b: str | Sequence[str] | None = None,
    only: str | None = None,
    everything: bool = False,
    metadata: bool = False,
    tolerance: float = 0.0,
    relative: float = 0.0,
    ignore_dtype: bool = False,
    progress: Progress | None = None,
) -> Difference:
    """Say what differs between two checkpoints, of any formats and layouts.

    Parameters
    ----------
    a, b : str, Path or Located
        File, folder or TensorFlow prefix; a `Located` brings its registry entry.
    layout : {"auto", "as-is"}
        ``auto`` pairs the tensors of two files of one family by what they are, in canonical axis order;
        ``as-is`` pairs by plain names and leaves axes alone.
    weights, weights_b : {"auto", "ema", "raw"}
        Which copy where a file holds both; ``weights_b`` for the second file where it is another.
    state_dict, state_dict_b : str, optional
        Which state dict of a PyTorch file. The first is the second file's too, where it has one of that name
        and nothing else is said of it; ``""`` says the only one.
    strip_prefix, strip_prefix_b : str or sequence of str, optional
        What to take off the front of the tensors' names; the first counts for both files likewise.
    only : str, optional
        Look only at tensors whose name matches: a glob, or a part of the name.
    everything : bool
        Count also what a named rule leaves out, and metadata that only tells how a file was made.
    metadata : bool
        Compare metadata and behaviour settings too.
    tolerance : float
        Largest absolute difference that counts as none; 0 wants the same bits.
    relative : float
        The same as a share of the first tensor's largest absolute value; either one suffices.
    ignore_dtype : bool
        Another element type alone is no difference.
    progress : Progress, optional
        Opens a display for (description, total bytes).

    Returns
    -------
    Difference

    Raises
    ------
    NotFoundError
        No such file, or no tensor that matches ``only``.
    FormatError
        A damaged or unsupported file; a tensor that differs from its stored checksum.
    UsageError
        A tolerance that is none, or a copy of the weights that a file does not hold.
    """
    allowed = _tolerance(tolerance, relative, ignore_dtype)
    first, second = (side if isinstance(side, Located) else Located(Path(side)) for side in (a, b))
    first = first.chosen(state_dict, strip_prefix)
    second = second.like(first)
    if state_dict_b is not None or strip_prefix_b is not None:
        second = second.chosen(state_dict_b, strip_prefix_b)
    with (
        open_side(first, weights, unwrap=layout == "auto") as one,
        open_side(second, weights_b or weights, unwrap=layout == "auto") as two,
    ):
        pairing, matches = _paired(one, two, layout)
        sides = one.side(matches[0] if matches else None), two.side(matches[1] if matches else None)
        if only is not None:
            pairing, sides = _restricted(pairing, only, sides)
        changed = _changed(pairing, one, two, allowed, progress or _silent)
        return Difference(
            a=sides[0],
            b=sides[1],
            paired_by="architecture" if matches else "names",
            paired=len(pairing.pairs),
            identical=len(pairing.pairs) - len(changed),
            only_a=_lone(single for single in pairing.only_a if everything or not single.by_rule),
            only_b=_lone(single for single in pairing.only_b if everything or not single.by_rule),
            left_out_a=_lone(single for single in pairing.only_a if single.by_rule and not everything),
            left_out_b=_lone(single for single in pairing.only_b if single.by_rule and not everything),
            changed=changed,
            metadata=tuple(_other_metadata(one, two, everything)) if metadata else (),
            tolerance=allowed,
            only=only,
            notes=tuple(_notes(one, two, pairing)),
        )


def _tolerance(absolute: float, relative: float, ignore_dtype: bool) -> Tolerance:
    for name, value in (("--tolerance", absolute), ("--relative", relative)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} {value} is no tolerance", hint="give a number that is 0 or more")
    return Tolerance(absolute, relative, ignore_dtype)


def _silent(_description: str, _total: int | None) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _steps: None)


def _paired(one: Opened, two: Opened, layout: LayoutChoice) -> tuple[Pairing, tuple[Match, Match] | None]:
    """Pair the tensors, through the family where both files are of the same one."""
    a, b = one.recognition, two.recognition
    if layout == "auto" and a is not None and b is not None and a.family is b.family:
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
        pairs=tuple(p for p in pairing.pairs if wanted(p.name, p.canonical, p.a.spec.name, p.b.spec.name)),
        only_a=tuple(single for single in pairing.only_a if wanted(single.spec.name, single.canonical)),
        only_b=tuple(single for single in pairing.only_b if wanted(single.spec.name, single.canonical)),
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
    """Every pair that is not alike, worst first."""
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
    a, b = pair.a.spec.name, pair.b.spec.name

    def rest() -> None:
        one.reader.release(a)
        two.reader.release(b)

    one.reader.check(a)
    two.reader.check(b)
    if pair.opaque:
        found = compare_bytes(bytes_of(one.reader, a).data, bytes_of(two.reader, b).data)
        rest()
        return found
    found = compare_arrays(pair.a.view(one.reader.read(a)), pair.b.view(two.reader.read(b)), rest=rest)
    rest()
    return found


def _judged(pair: Pair, values: ValueDifference | None, allowed: Tolerance) -> Changed | None:
    """What to say of a pair, None when it is alike in every bit."""
    other_dtype = pair.a.spec.dtype != pair.b.spec.dtype
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
        name_a=pair.a.spec.name,
        name_b=pair.b.spec.name,
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


def _lone(singles: Iterable[Single]) -> tuple[Lone, ...]:
    return tuple(
        Lone(one.spec.name, one.spec.dtype.name, one.spec.shape, one.canonical, one.remark) for one in singles
    )


# -- what the files say of themselves ------------------------------------------------------------------------


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
            said = f"{settings_a[key]} in A, {settings_b[key]} in B"
            yield f"{key} is {said}: models built from them compute different things"
    if not pairing.pairs and pairing.only_a and pairing.only_b:
        yield "no tensor has one name in both files"
