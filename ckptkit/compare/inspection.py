"""What is in a file: its tensors, what they are of, and what the file says about itself.

Any supported file of any model can be inspected; nothing here fails because the architecture is not known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.base.tensors import Array, TensorSpec, contiguous_chunks
from ckptkit.families.base import Recognition, recognise
from ckptkit.workspace import Located

if TYPE_CHECKING:
    from ckptkit.formats.base import Reader, Weights
    from ckptkit.workspace import Progress

Sort = Literal["file", "name", "size"]


@dataclass(frozen=True)
class Statistics:
    """Figures over one tensor's finite elements, computed in float64.

    Parameters
    ----------
    minimum, maximum, mean, std : float or None
        ``std`` divides by the number of elements; None when no element is finite, or too large to compute.
    zeros, nans, infinities : int
        How many elements are exactly zero, and how many are not finite.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    zeros: int
    nans: int
    infinities: int


def statistics(array: Array) -> Statistics | None:
    """Figures over a tensor, taken piece by piece so that memory stays bounded; None for complex numbers.

    Mean and squared deviations of the pieces are merged pairwise (Chan, Golub and LeVeque, 1983), which
    keeps the digits that a plain sum of squares would lose.

    Parameters
    ----------
    array : numpy.ndarray
        Any shape, any strides.

    Examples
    --------
    >>> import numpy
    >>> statistics(numpy.array([0.0, 3.0, numpy.nan, 6.0], "float32"))
    Statistics(minimum=0.0, maximum=6.0, mean=3.0, std=2.449489742783178, zeros=1, nans=1, infinities=0)
    """
    import numpy

    if array.dtype.kind == "c":
        return None
    low, high, mean, squares = math.inf, -math.inf, 0.0, 0.0
    count = zeros = nans = infinities = 0
    with numpy.errstate(all="ignore"):
        for chunk in contiguous_chunks(array):
            numbers = chunk.astype("float64")
            finite = numbers[numpy.isfinite(numbers)]
            nans += int(numpy.isnan(numbers).sum())
            infinities += int(numpy.isinf(numbers).sum())
            if not finite.size:
                continue
            zeros += int(finite.size - numpy.count_nonzero(finite))
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            piece_mean = float(finite.mean())
            gap = piece_mean - mean
            total = count + finite.size
            squares += (
                float(numpy.square(finite - piece_mean).sum()) + gap * gap * count * finite.size / total
            )
            mean += gap * finite.size / total
            count = total
    if not count:
        return Statistics(None, None, None, None, 0, nans, infinities)
    std = math.sqrt(squares / count) if math.isfinite(squares) else None  # float64's own range can be left
    return Statistics(low, high, mean if math.isfinite(mean) else None, std, zeros, nans, infinities)


@dataclass(frozen=True)
class InspectedTensor:
    """One tensor of a file.

    Parameters
    ----------
    name : str
        As the file has it.
    shape : tuple of int
    dtype : str
    size : int
        Elements.
    nbytes : int
    renamed : str or None
        Name in the layout asked for, None where it has none there.
    statistics : Statistics or None
        None when not asked for, or not defined.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nbytes: int
    renamed: str | None = None
    statistics: Statistics | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over a file's tensors: how many, their elements, and their bytes in all and by element type."""

    tensors: int
    elements: int
    nbytes: int
    by_dtype: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """What is in a file.

    Parameters
    ----------
    path : Path
    format : str
        The container.
    family, variant, layout : str or None
        What the tensors were recognised as.
    pos_emb : bool or None
        Whether there are position tables; None in families without, and in files not recognised.
    num_classes : int or None
        Outputs of the head; None where there is none, or in files not recognised.
    parameters : int or None
        Trainable parameters of what it was recognised as.
    copies : mapping of str to int
        Where the file holds both copies of the weights, ``ema`` and ``raw``: tensors of each.
    state_dicts : tuple of str
        Where a PyTorch file holds state dicts; ``""`` is the top.
    metadata, extras : mapping of str to str
        What the container says about itself, and what else it holds that is no tensor.
    left_out : mapping of str to str
        Tensors that cannot be read, and why not.
    notes : tuple of str
        What is unusual.
    totals : Totals
        Over the whole file, whatever ``tensors`` shows of it.
    tensors : tuple of InspectedTensor
        Those that match, sorted as asked.
    """

    path: Path
    format: str
    family: str | None
    variant: str | None
    layout: str | None
    pos_emb: bool | None
    num_classes: int | None
    parameters: int | None
    copies: Mapping[str, int]
    state_dicts: tuple[str, ...]
    metadata: Mapping[str, str]
    extras: Mapping[str, str]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    totals: Totals
    tensors: tuple[InspectedTensor, ...]

    def to_json(self, *, tensors: bool = True) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes; ``tensors=False`` leaves the list of tensors out."""
        values = asdict(self)
        values["path"] = str(self.path)
        if not tensors:
            del values["tensors"]
        return values


def inspect_file(
    what: str | Path | Located,
    *,
    pattern: str | None = None,
    sort: Sort = "file",
    stats: bool = False,
    layout: str | None = None,
    weights: Weights | None = None,
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Look into a file.

    Parameters
    ----------
    what : str, Path or Located
        Any supported file, folder or prefix.
    pattern : str, optional
        List only tensors whose name matches: a glob, or a part of the name.
    sort : {"file", "name", "size"}
        Order of the list; ``size`` puts the largest first.
    stats : bool
        Compute `Statistics` of each tensor listed.
    layout : str, optional
        Give each tensor's name in this layout too.
    weights : {"auto", "ema", "raw"}, optional
        Which copy, where the file holds both in state dicts of their own; default the plain one.
    state_dict, strip_prefix
        As for `ckptkit.load`.
    progress : Progress, optional
        Opens a display for (description, total bytes).

    Raises
    ------
    NotFoundError
        No such file, no such layout, or no tensor that matches.
    FormatError
        A damaged or unsupported file.
    UsageError
        When names in a layout are asked for and the file is of no known architecture.
    """
    located = what if isinstance(what, Located) else Located(Path(what))
    with located.chosen(state_dict, strip_prefix).open(weights) as reader:
        recognition = recognise(reader.specs)
        renamed = _renamed(reader, recognition, layout) if layout is not None else {}
        chosen = _chosen(reader, pattern, sort)
        show = progress or _silent
        nbytes = sum(spec.nbytes for spec in chosen)
        with show(f"reading {reader.path}", nbytes) if stats else nullcontext(_ignore) as advance:
            tensors = tuple(_inspected(reader, spec, renamed, stats, advance) for spec in chosen)
        return Inspection(
            path=reader.path,
            format=reader.format,
            family=recognition.family.name if recognition else None,
            variant=recognition.variant if recognition else None,
            layout=recognition.layout if recognition else None,
            pos_emb=recognition.structure.pos_emb if recognition and recognition.family.has_pos_emb else None,
            num_classes=recognition.structure.num_classes if recognition else None,
            parameters=recognition.table.parameters if recognition else None,
            copies=_copies(reader, recognition),
            state_dicts=reader.state_dicts,
            extras=dict(reader.extras),
            left_out=dict(reader.left_out),
            metadata=dict(reader.metadata),
            notes=tuple(reader.notes),
            totals=_totals(reader.specs),
            tensors=tensors,
        )


def _ignore(_steps: int) -> None:
    return None


def _silent(_description: str, _total: int | None) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(_ignore)


def _chosen(reader: Reader, pattern: str | None, sort: Sort) -> list[TensorSpec]:
    chosen = [spec for spec in reader.specs.values() if pattern is None or _matches(spec.name, pattern)]
    if pattern is not None and not chosen:
        raise NotFoundError(
            f"{reader.path}: none of its {len(reader.specs):,} tensors is called like {pattern!r}",
            hint="write a part of a name, or a glob such as '*/kernel'",
        )
    if sort == "name":
        chosen.sort(key=lambda spec: spec.name)
    elif sort == "size":
        chosen.sort(key=lambda spec: (-spec.nbytes, spec.name))
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """Match a part of the name, or a glob."""
    return pattern in name or fnmatchcase(name, pattern)


def _inspected(
    reader: Reader,
    spec: TensorSpec,
    renamed: Mapping[str, str],
    stats: bool,
    advance: Callable[[int], None],
) -> InspectedTensor:
    figures = None
    if stats:
        reader.check(spec.name)
        figures = None if spec.dtype.is_opaque else statistics(reader.read(spec.name))
        reader.release(spec.name)
        advance(spec.nbytes)
    return InspectedTensor(
        name=spec.name,
        shape=spec.shape,
        dtype=spec.dtype.name,
        size=spec.size,
        nbytes=spec.nbytes,
        renamed=renamed.get(spec.name),
        statistics=figures,
    )


def _renamed(reader: Reader, recognition: Recognition | None, layout: str) -> dict[str, str]:
    """Name in the file → name in another layout, second copies included."""
    if recognition is None:
        raise UsageError(
            f"{reader.path}: of no known architecture, so its tensors have no names in layout {layout!r}",
            hint="leave --layout out",
        )
    target = recognition.family.table(layout, recognition.variant, recognition.structure)
    names = {}
    for row in recognition.table.bindings:
        for plain in (row.external, *row.aliases):
            other = target.by_canonical[row.canonical].external
            names[plain] = other
            if recognition.table.layout.second_copy:
                names[recognition.table.layout.second_copy.of(plain)] = other
    return {name: names[name] for name in reader.specs if name in names}


def _copies(reader: Reader, recognition: Recognition | None) -> dict[str, int]:
    """How many tensors there are of each copy, where there are two."""
    if (opened := reader.weights) is not None:
        return {opened: len(reader.specs)}
    twin = recognition.table.layout.second_copy if recognition else None
    if recognition is None or twin is None:
        return {}
    plain = [name for name in reader.specs if name in recognition.table.by_external]
    second = sum(twin.of(name) in reader.specs for name in plain)
    return {twin.plain: len(plain), twin.holds: second} if second else {}


def _totals(specs: Mapping[str, TensorSpec]) -> Totals:
    by_dtype: Counter[str] = Counter()
    for spec in specs.values():
        by_dtype[spec.dtype.name] += spec.nbytes
    return Totals(
        tensors=len(specs),
        elements=sum(spec.size for spec in specs.values()),
        nbytes=sum(by_dtype.values()),
        by_dtype=dict(by_dtype),
    )
