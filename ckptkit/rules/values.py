"""Which tensors of two files hold the same values, whatever their names, axes and fusing.

A fingerprint does not depend on the order of a tensor's elements, and those of parts add up to that of the
whole. It finds candidates; what is returned was compared bit for bit. A tensor of one value repeated (zeros,
ones) has no identity and is never paired here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

from ckptkit.base.axes import Shape
from ckptkit.base.tensors import DTYPES, Array, DType, TensorSpec, contiguous_chunks
from ckptkit.formats.base import Reader
from ckptkit.rules.fusing import joined, stacked
from ckptkit.rules.naming import layers_of
from ckptkit.rules.structure import Match
from ckptkit.rules.turning import Turn, turns

_MASK = (1 << 64) - 1
_MOST_COMBINED = 400
"""Tensors among which two or three are looked for that make one, whatever their names."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Fingerprint:
    """Sums over the bit patterns of a tensor's elements."""

    size: int
    width: int
    plain: int
    mixed: int

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(
            self.size + other.size,
            self.width if self.width == other.width else -1,
            (self.plain + other.plain) & _MASK,
            (self.mixed + other.mixed) & _MASK,
        )

    def __sub__(self, other: Fingerprint) -> Fingerprint:
        width = self.width if self.width == other.width else -1
        plain, mixed = (self.plain - other.plain) & _MASK, (self.mixed - other.mixed) & _MASK
        return Fingerprint(self.size - other.size, width, plain, mixed)


def fingerprint(array: Array) -> tuple[Fingerprint, bool]:
    """The fingerprint of an array, and whether it is one value repeated, or a single 0 or 1.

    >>> import numpy
    >>> a = numpy.arange(6, dtype="float32").reshape(2, 3)
    >>> fingerprint(a)[0] == fingerprint(a.T)[0] == fingerprint(a[:1])[0] + fingerprint(a[1:])[0]
    True
    >>> fingerprint(numpy.ones((2, 3)))[1]
    True
    """
    import numpy

    width = array.dtype.itemsize
    plain = mixed = 0
    low = high = None
    with numpy.errstate(over="ignore"):
        for chunk in contiguous_chunks(array):
            if not chunk.size:
                continue
            bits = chunk.view(f"u{width}") if width in (1, 2, 4, 8) else chunk.view("u1")
            least, most = int(bits.min()), int(bits.max())
            low, high = min(least, low if low is not None else least), max(most, high or 0)
            x = bits.astype(numpy.uint64)
            plain += int(x.sum())
            x *= numpy.uint64(0x9E3779B97F4A7C15)
            x ^= x >> numpy.uint64(29)
            x *= numpy.uint64(0xBF58476D1CE4E5B9)
            x ^= x >> numpy.uint64(32)
            mixed += int(x.sum())
    same = low == high and (array.size != 1 or array.reshape(-1)[0] in (0, 1))
    return Fingerprint(array.size, width, plain & _MASK, mixed & _MASK), bool(same)


@dataclass(frozen=True)
class Values:
    """Fingerprints of a file's tensors, and which have one value only."""

    prints: Mapping[str, Fingerprint]
    constant: frozenset[str]
    rounded: Mapping[tuple[str, str], Fingerprint] = field(default_factory=dict)  # by name and narrower type

    @classmethod
    def of(cls, reader: Reader | _Rounded, advance: Advance, skip: Container[str] = ()) -> Values:
        """Read a file once, tensor by tensor."""
        prints, constant = {}, set()
        for name, spec in reader.specs.items():
            if not spec.dtype.is_opaque and name not in skip:
                reader.check(name)
                prints[name], same = fingerprint(reader.read(name))
                if same:
                    constant.add(name)
                reader.release(name)
            advance(spec.nbytes)
        return cls(prints, frozenset(constant))


class _Pairing:
    """Finds what two files share."""

    def __init__(
        self, source: Reader | _Rounded, target: Reader | _Rounded, left: Values, right: Values
    ) -> None:
        self._readers = source, target
        self._values = left, right
        self.matches: list[Match] = []
        self._used: tuple[set[str], set[str]] = set(), set()

    def run(self) -> list[Match]:
        """Tensors that are one, then those that are parts of one."""
        self._whole()
        for forward in (True, False):
            self._parts(forward=forward)
        return self.matches

    def _whole(self) -> None:
        left, right = (_by_print(values) for values in self._values)
        for key, names in left.items():
            if len(names) != 1 or len(right.get(key, ())) != 1:
                continue
            (a,), (b,) = names, right[key]
            turn = self._same(a, b)
            if turn is not None:
                self._found(Match((a,), (b,), turn, sure="proven"))

    def _same(self, a: str, b: str) -> Turn | None:
        source, target = self._readers
        x, y = source.read(a), target.read(b)
        fitting = [turn for turn in turns(x.shape, y.shape) if is_turned(x, turn, y)]
        source.release(a)
        target.release(b)
        return fitting[0] if len(fitting) == 1 else None  # several where the values are symmetric

    def _found(self, match: Match) -> None:
        self.matches.append(match)
        self._used[0].update(match.sources)
        self._used[1].update(match.targets)

    # -- several that are one ----------------------------------------------------------------------------

    def _parts(self, *, forward: bool) -> None:
        many, one = (0, 1) if forward else (1, 0)
        specs = self._open(many)
        wholes: defaultdict[Fingerprint, list[str]] = defaultdict(list)
        for name in self._open(one):
            wholes[self._values[one].prints[name]].append(name)
        if not specs or not wholes:
            return
        for names, how, each in self._candidates(specs, wholes, many):
            if any(name in self._used[many] for name in names):
                continue
            total = self._sum(names, many)
            for whole in wholes.get(total, ()):
                if whole in self._used[one]:
                    continue
                match = self._placed(names, whole, how, each, forward=forward)
                if match is not None:
                    self._found(match)
                    break

    def _open(self, side: int) -> dict[str, TensorSpec]:
        """What is not paired yet and can be."""
        values, used = self._values[side], self._used[side]
        return {
            name: spec
            for name, spec in self._readers[side].specs.items()
            if name in values.prints and name not in used and name not in values.constant
        }

    def _sum(self, names: Sequence[str], side: int) -> Fingerprint:
        prints = [self._values[side].prints[name] for name in names]
        total = prints[0]
        for one in prints[1:]:
            total = total + one
        return total

    def _candidates(
        self, specs: Mapping[str, TensorSpec], wholes: Mapping[Fingerprint, list[str]], side: int
    ) -> Iterator[tuple[tuple[str, ...], str, int]]:
        """Parts that belong together by name, then any two or three whose sum is right."""
        layers = layers_of(specs)
        rows: list[tuple[str, ...]] = []
        for bundle in (*stacked(layers), *joined(layers)):
            for row in bundle.rows:
                for kind in row[0].parts:
                    if all(kind in layer.parts for layer in row):
                        names = tuple(layer.parts[kind].name for layer in row)
                        yield names, bundle.how, 1
                        if bundle.how == "stack":
                            rows.append(names)
        yield from self._sums_of_rows(rows, wholes, side)
        yield from ((names, "join", 1) for names in self._sums(list(specs), wholes, side))

    def _sums_of_rows(
        self, rows: Sequence[tuple[str, ...]], wholes: Mapping[Fingerprint, list[str]], side: int
    ) -> Iterator[tuple[tuple[str, ...], str, int]]:
        """Two rows of numbered tensors whose fingerprints add up to that of a whole."""
        sums = {row: self._sum(row, side) for row in rows}
        by_sum: defaultdict[tuple[int, Fingerprint], list[tuple[str, ...]]] = defaultdict(list)
        for row, total in sums.items():
            by_sum[len(row), total].append(row)
        for whole in wholes:
            for row, total in sums.items():
                for other in by_sum.get((len(row), whole - total), ()):
                    if other != row:
                        yield (
                            tuple(name for pair in zip(row, other, strict=True) for name in pair),
                            "stack",
                            2,
                        )

    def _sums(
        self, names: list[str], wholes: Mapping[Fingerprint, list[str]], side: int
    ) -> Iterator[tuple[str, ...]]:
        """Two or three tensors whose fingerprints add up to that of a whole."""
        prints = self._values[side].prints
        if len(names) > _MOST_COMBINED:
            return
        by_print = {prints[name]: name for name in names}
        for total in wholes:
            small = [name for name in names if prints[name].size < total.size]
            tuples: list[tuple[str, ...]] = [(name,) for name in small]
            if len(small) <= _MOST_COMBINED // 2:
                tuples += combinations(small, 2)
            for some in tuples:
                left = total - self._sum(some, side)
                rest = by_print.get(left)
                if rest is not None and rest not in some:
                    yield (*some, rest)

    def _placed(
        self, names: tuple[str, ...], whole: str, how: str, each: int, *, forward: bool
    ) -> Match | None:
        """Where each part is in the whole, compared bit for bit."""
        many, one = self._readers if forward else self._readers[::-1]
        fused = one.read(whole)
        parts = {name: many.read(name) for name in names}
        found, along = None, None
        for axis in range(fused.ndim):
            if each > 1:
                found, along = _stack_of_joined(parts, fused, axis, each, forward=forward)
            elif how == "stack":
                found = _stack(parts, fused, axis, forward=forward)
            else:
                found = _join(parts, fused, axis, forward=forward) or _interleaved(
                    parts, fused, axis, forward=forward
                )
            if found is not None:
                break
        for name in names:
            many.release(name)
        one.release(whole)
        if found is None:
            return None
        order, turn, over = found
        operation = {
            ("join", True): "concat",
            ("join", False): "split",
            ("stack", True): "stack",
            ("stack", False): "unstack",
        }[how, forward]
        return Match(
            order if forward else (whole,),
            (whole,) if forward else order,
            turn,
            operation,  # type: ignore[arg-type]
            axis,
            over,
            each,
            along,
            sure="proven",
        )


_Found = tuple[tuple[str, ...], Turn, str | None]


def _join(parts: Mapping[str, Array], fused: Array, axis: int, *, forward: bool) -> _Found | None:
    """The parts one after the other along an axis, each turned alike."""
    rest = fused.size // fused.shape[axis] if fused.shape[axis] else 0
    lengths = {
        name: part.size // rest if rest and part.size % rest == 0 else 0 for name, part in parts.items()
    }
    if not all(lengths.values()) or sum(lengths.values()) != fused.shape[axis]:
        return None
    first = next(iter(parts))
    shape = _with(fused.shape, axis, lengths[first])
    for turn in _ways(parts[first].shape, shape, forward=forward):
        order: list[str] = []
        at = 0
        while at < fused.shape[axis]:
            fits = next(
                (
                    name
                    for name, part in parts.items()
                    if name not in order
                    and _is_part(part, turn, _slice(fused, axis, at, lengths[name]), forward=forward)
                ),
                None,
            )
            if fits is None:
                break
            order.append(fits)
            at += lengths[fits]
        else:
            return tuple(order), turn, None
    return None


def _stack(parts: Mapping[str, Array], fused: Array, axis: int, *, forward: bool) -> _Found | None:
    """The parts as the places of an axis of their own."""
    if fused.shape[axis] != len(parts):
        return None
    names = tuple(parts)
    moved = [_index(fused, axis, at) for at in range(len(names))]
    for turn in _ways(parts[names[0]].shape, moved[0].shape, forward=forward):
        if all(
            _is_part(parts[name], turn, one, forward=forward) for name, one in zip(names, moved, strict=True)
        ):
            return names, turn, None
    return None


def _stack_of_joined(
    parts: Mapping[str, Array], fused: Array, axis: int, each: int, *, forward: bool
) -> tuple[_Found | None, int | None]:
    """The parts of each number one after the other, and these as the places of an axis; where they join."""
    names = tuple(parts)
    if fused.shape[axis] * each != len(names):
        return None, None
    for along in range(fused.ndim - 1):
        row = {name: parts[name] for name in names[:each]}
        first = _join(row, _index(fused, axis, 0), along, forward=forward)
        if first is None:
            continue
        order = [names.index(name) for name in first[0]]
        found = tuple(names[start + n] for start in range(0, len(names), each) for n in order)
        if all(
            _fit_in_order({name: parts[name] for name in found[at * each :][:each]}, first[1],
                          _index(fused, axis, at), along, forward=forward)
            for at in range(1, fused.shape[axis])
        ):  # fmt: skip
            return (found, first[1], None), along + (axis <= along)
    return None, None


def _fit_in_order(parts: Mapping[str, Array], turn: Turn, fused: Array, axis: int, *, forward: bool) -> bool:
    """Whether parts, turned alike, are one after the other along an axis."""
    rest, at = fused.size // fused.shape[axis], 0
    for part in parts.values():
        length = part.size // rest
        if not _is_part(part, turn, _slice(fused, axis, at, length), forward=forward):
            return False
        at += length
    return True


def _interleaved(parts: Mapping[str, Array], fused: Array, axis: int, *, forward: bool) -> _Found | None:
    """The parts of each head together: ``(heads three d)`` along an axis, or an axis of their own."""
    count = len(parts)
    length = fused.shape[axis]
    if len({part.size for part in parts.values()}) > 1 or length % count or length == count:
        return None
    for heads in range(2, length // count + 1):
        if length % (heads * count):
            continue
        inner = length // (heads * count)
        split = fused.reshape(*fused.shape[:axis], heads, count, inner, *fused.shape[axis + 1 :])
        shape = _with(fused.shape, axis, heads * inner)
        pieces = [_index(split, axis + 1, at).reshape(shape) for at in range(count)]
        for turn in _ways(next(iter(parts.values())).shape, shape, forward=forward):
            order: list[str] = []
            for piece in pieces:
                fits = next(
                    (
                        n
                        for n, part in parts.items()
                        if n not in order and _is_part(part, turn, piece, forward=forward)
                    ),
                    None,
                )
                if fits is None:
                    break
                order.append(fits)
            if len(order) == count:
                return tuple(order), turn, f"{heads}"
    return None


def _ways(part: Shape, piece: Shape, *, forward: bool) -> Sequence[Turn]:
    return turns(part, piece) if forward else turns(piece, part)


def _is_part(part: Array, turn: Turn, piece: Array, *, forward: bool) -> bool:
    return is_turned(part, turn, piece) if forward else is_turned(piece, turn, part)


def _with(shape: Shape, axis: int, length: int) -> Shape:
    return (*shape[:axis], length, *shape[axis + 1 :])


def _slice(array: Array, axis: int, start: int, length: int) -> Array:
    return array[(slice(None),) * axis + (slice(start, start + length),)]


def _index(array: Array, axis: int, at: int) -> Array:
    taken: Array = array[(slice(None),) * axis + (at,)]
    return taken


def is_turned(x: Array, turn: Turn, y: Array) -> bool:
    """Whether ``y`` is ``x`` with its axes turned so, bit for bit."""
    import numpy

    if x.dtype != y.dtype or x.size != y.size:
        return False
    try:
        turned = turn.op.to_canonical(x, y.shape)
    except ValueError:
        return False
    if turned.shape != y.shape:
        return False
    width = x.dtype.itemsize
    if width not in (1, 2, 4, 8):
        return bool(turned.tobytes() == y.tobytes())
    bits = f"u{width}"
    if turned.ndim < 2:
        return bool(numpy.array_equal(_bits(turned, bits), _bits(y, bits)))
    return all(
        numpy.array_equal(_bits(row, bits), _bits(other, bits)) for row, other in zip(turned, y, strict=True)
    )


def _bits(array: Array, kind: str) -> Array:
    import numpy

    return numpy.ascontiguousarray(array).view(kind)


def same_values(source: Reader, target: Reader, left: Values, right: Values) -> list[Match]:
    """Pair the tensors of two files that hold the same values."""
    return _Pairing(source, target, left, right).run()


# -- files of different element types ------------------------------------------------------------------------


class _Rounded:
    """Some tensors of a file as they are in a narrower element type."""

    def __init__(self, reader: Reader, names: Iterable[str], dtype: DType) -> None:
        self._reader, self._dtype = reader, dtype
        self.specs = {name: replace(reader.specs[name], dtype=dtype) for name in names}

    def read(self, name: str) -> Array:
        """The tensor, rounded."""
        import numpy

        array = self._reader.read(name)
        flat, start = numpy.empty(array.size, self._dtype.numpy), 0
        with numpy.errstate(over="ignore", invalid="ignore"):
            for chunk in contiguous_chunks(array, self._dtype):
                flat[start : start + chunk.size] = chunk
                start += chunk.size
        return flat.reshape(array.shape)

    def check(self, name: str) -> bool:
        """As the file does it."""
        return self._reader.check(name)

    def release(self, name: str) -> None:
        """As the file does it."""
        self._reader.release(name)


def same_up_to_rounding(
    source: Reader, target: Reader, left: Values, right: Values, *, found: Sequence[Match]
) -> tuple[list[Match], Values, Values]:
    """Pair what is left where one file has a wider element type; both files' values with those rounded."""
    used = {name for match in found for name in match.sources}, {n for match in found for n in match.targets}
    readers, values = [source, target], [left, right]
    by_type: list[defaultdict[str, list[str]]] = [defaultdict(list), defaultdict(list)]
    for side in (0, 1):
        for name in values[side].prints:
            if name not in used[side] and readers[side].specs[name].dtype.kind == "float":
                by_type[side][readers[side].specs[name].dtype.name].append(name)
    matches: list[Match] = []
    rounded: list[dict[tuple[str, str], Fingerprint]] = [{}, {}]
    for a, b in product(by_type[0], by_type[1]):
        one, other = DTYPES[a], DTYPES[b]
        if one.itemsize == other.itemsize:
            continue
        wide, narrow = (0, other) if one.itemsize > other.itemsize else (1, one)
        both: list[Reader | _Rounded] = list(readers)
        both[wide] = _Rounded(readers[wide], by_type[wide][(a, b)[wide]], narrow)
        own = Values.of(both[wide], lambda _: None)
        rounded[wide] |= {(name, narrow.name): key for name, key in own.prints.items()}
        names = by_type[1 - wide][narrow.name]
        plain = values[1 - wide]
        there = Values({name: plain.prints[name] for name in names}, plain.constant)
        pair = (own, there) if wide == 0 else (there, own)
        new = _Pairing(both[0], both[1], *pair).run()
        matches += [replace(match, rounded=narrow.name) for match in new]
    return matches, replace(left, rounded=rounded[0]), replace(right, rounded=rounded[1])


def _by_print(values: Values) -> dict[Fingerprint, list[str]]:
    found: defaultdict[Fingerprint, list[str]] = defaultdict(list)
    for name, key in values.prints.items():
        if name not in values.constant:
            found[key].append(name)
    return found
