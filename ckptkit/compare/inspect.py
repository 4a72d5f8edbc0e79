"""What is in a file: its tensors, the architecture they belong to, and the metadata.

Any supported file of any model can be inspected; nothing here fails because the architecture is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.base.progress import Progress, no_progress
from ckptkit.base.shown import Column, Note, Piece, Shown, Table
from ckptkit.base.tensors import TensorSpec
from ckptkit.base.text import counted, human_bytes, shape_text
from ckptkit.compare.arrays import Statistics, statistics
from ckptkit.families.recognition import Recognition, recognise
from ckptkit.workspace import Located

if TYPE_CHECKING:
    from ckptkit.formats.base import Reader, Weights

Sort = Literal["file", "name", "size"]


@dataclass(frozen=True)
class InspectedTensor:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int  # number of elements
    nbytes: int
    renamed: str | None = None  # its name in the layout asked for
    statistics: Statistics | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over a file's tensors: how many, their elements, and their bytes in all and by element type."""

    tensors: int
    elements: int
    nbytes: int
    by_dtype: Mapping[str, int]


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """What is in a file."""

    path: Path
    format: str
    family: str | None
    variant: str | None
    layout: str | None
    pos_emb: bool | None  # whether there are position tables; None in families without them
    num_classes: int | None  # outputs of the head
    parameters: int | None  # trainable parameters of what it was recognised as
    copies: Mapping[str, int]  # number of tensors of "ema" and "raw", where the file holds both
    state_dicts: tuple[str, ...]  # where a PyTorch file holds state dicts; `""` is the top
    metadata: Mapping[str, str]
    extras: Mapping[str, str]  # what else the container holds
    left_out: Mapping[str, str]  # tensors that cannot be read, and why not
    notes: tuple[str, ...]  # what is unusual
    totals: Totals  # over the whole file, whatever `tensors` shows of it
    tensors: tuple[InspectedTensor, ...]  # those that match, sorted as asked

    @property
    def headline(self) -> str:
        """The result in one line."""
        size = human_bytes(self.totals.nbytes)
        return f"{self.path}: {self.format}, {counted(self.totals.tensors, 'tensor')}, {size}"

    def pieces(
        self, *, everything: bool = False, tensors: bool = True, renamed_to: str | None = None
    ) -> Iterator[Piece]:
        """What the file is and says of itself, then its tensors."""
        yield from (
            f"{heading:<12}{text}" for heading, text in _inspection_lines(self, everything=everything)
        )
        if tensors:
            yield ""
            yield _tensor_table(self, renamed_to)
        yield from (Note(f"note: {note}") for note in self.notes)

    def to_json(self, *, tensors: bool = True) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes; ``tensors=False`` leaves the list of tensors out."""
        values = asdict(self)
        values["path"] = str(self.path)
        if not tensors:
            del values["tensors"]
        return values


_SHOWN_LINES = 12
"""Lines shown of a text of many lines; --verbose and --json give all."""


def _inspection_lines(inspection: Inspection, *, everything: bool) -> list[tuple[str, str]]:
    totals = inspection.totals
    types = ", ".join(f"{name} {human_bytes(nbytes)}" for name, nbytes in totals.by_dtype.items())
    lines = [
        ("file", str(inspection.path)),
        ("format", inspection.format),
        ("recognised", _recognised(inspection)),
        (
            "tensors",
            f"{totals.tensors:,}, {counted(totals.elements, 'element')}, {human_bytes(totals.nbytes)}",
        ),
        ("types", types or "none"),
    ]
    if inspection.parameters is not None:
        lines.append(("parameters", f"{inspection.parameters:,} trainable in {inspection.variant}"))
    if inspection.copies:
        lines.append(("weights", _copies_in_words(inspection)))
    if len(inspection.state_dicts) > 1:
        lines.append(("state dicts", ", ".join(name or "(top)" for name in inspection.state_dicts)))
    lines += [("not read", f"{name}: {why}") for name, why in inspection.left_out.items()]
    lines += [("metadata", f"{key}: {value}") for key, value in inspection.metadata.items()]
    for key, value in inspection.extras.items():
        text = value.split("\n")
        if len(text) == 1:
            lines.append(("also holds", f"{key}: {value}"))
        else:
            lines.append(("also holds", f"{key}:"))
            lines += [("", f"    {line}") for line in _shown_lines(text, everything)]
    return lines


def _shown_lines(text: list[str], everything: bool) -> list[str]:
    """The first lines of a long text, such as a training configuration."""
    if everything or len(text) <= _SHOWN_LINES:
        return text
    more = len(text) - _SHOWN_LINES
    return [*text[:_SHOWN_LINES], f"… and {counted(more, 'more line')}; --verbose shows all"]


_COPY_NAMES = {"ema": "moving averages (EMA)", "raw": "raw weights"}


def _copies_in_words(inspection: Inspection) -> str:
    """Where each copy of the weights is."""
    if len(inspection.copies) == 1:
        (shown,) = inspection.copies
        return f"both copies, each in a state dict of its own; these are the {_COPY_NAMES[shown]}"
    (plain, _), (second, count) = inspection.copies.items()
    return (
        f"{_COPY_NAMES[plain]} under the plain names, {_COPY_NAMES[second]} of "
        f"{counted(count, 'tensor')} beside them"
    )


def _recognised(inspection: Inspection) -> str:
    if inspection.variant is None:
        return "no architecture known here"
    parts = [f"{inspection.family}, {inspection.variant}", f"layout {inspection.layout}"]
    if inspection.pos_emb is not None:
        parts.append("with position embedding" if inspection.pos_emb else "without position embedding")
    parts.append(
        counted(inspection.num_classes, "class") if inspection.num_classes is not None else "no head"
    )
    return ", ".join(parts)


def _tensor_table(inspection: Inspection, renamed_to: str | None) -> Table:
    stats = any(tensor.statistics for tensor in inspection.tensors)
    columns = [Column("name"), Column("shape"), Column("dtype"), Column("size", numeric=True)]
    if renamed_to is not None:
        columns.insert(1, Column(f"in {renamed_to}"))
    if stats:
        columns += [Column(name, numeric=True) for name in _FIGURES]
    rows = []
    for tensor in inspection.tensors:
        row = [tensor.name, shape_text(tensor.shape), tensor.dtype, human_bytes(tensor.nbytes)]
        if renamed_to is not None:
            row.insert(1, tensor.renamed or "–")
        rows.append(row + _statistics(tensor) if stats else row)
    return Table(columns, rows)


_FIGURES = ("min", "max", "mean", "std", "zeros", "NaN", "Inf")


def _statistics(tensor: InspectedTensor) -> list[str]:
    found = tensor.statistics
    if found is None:
        return ["–"] * len(_FIGURES)
    numbers = (found.minimum, found.maximum, found.mean, found.std)
    counts = (found.zeros, found.nans, found.infinities)
    return [*("–" if n is None else f"{n:.4g}" for n in numbers), *(f"{count:,}" for count in counts)]


@dataclass(frozen=True)
class InspectRequest:
    """What of a file to look at."""

    pattern: str | None = None  # a glob, or part of a tensor's name
    sort: Sort = "file"
    stats: bool = False
    layout: str | None = None  # to show the names in too
    weights: Weights | None = None  # which state dict, where a file holds both copies in their own


def inspect_file(
    located: Located, request: InspectRequest = InspectRequest(), progress: Progress = no_progress
) -> Inspection:
    """Look into a file."""
    with located.open(request.weights) as reader:
        recognition = recognise(reader.specs)
        renamed = _renamed(reader, recognition, request.layout) if request.layout is not None else {}
        chosen = _chosen(reader, request.pattern, request.sort)
        show = progress if request.stats else no_progress
        with show(f"reading {reader.path}", sum(spec.nbytes for spec in chosen)) as advance:
            tensors = tuple(_inspected(reader, spec, renamed, request.stats, advance) for spec in chosen)
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


def _chosen(reader: Reader, pattern: str | None, sort: Sort) -> list[TensorSpec]:
    chosen = [spec for spec in reader.specs.values() if pattern is None or _matches(spec.name, pattern)]
    if pattern is not None and not chosen:
        raise NotFoundError(
            f"{reader.path}: none of its {counted(len(reader.specs), 'tensor')} has a name "
            f"that matches {pattern!r}",
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
    """Name in the file → name in another layout, where it has one, second copies included."""
    if recognition is None:
        raise UsageError(
            f"{reader.path}: not of a known architecture, so its tensors have no names in layout {layout!r}",
            hint="leave --layout out",
        )
    target = recognition.family.table(layout, recognition.variant, recognition.structure)
    names = {}
    for row in recognition.table.bindings:
        if row.canonical not in target.by_canonical:  # as num_batches_tracked in kecam
            continue
        other = target.by_canonical[row.canonical].external
        for plain in (row.external, *row.aliases):
            names[plain] = other
            if recognition.table.layout.second_copy:
                names[recognition.table.layout.second_copy.of(plain)] = other
    return {name: names[name] for name in reader.specs if name in names}


def _copies(reader: Reader, recognition: Recognition | None) -> dict[str, int]:
    """How many tensors there are of each copy, where there are two."""
    if (opened := reader.weights) is not None:
        return {opened: len(reader.specs)}
    copy = recognition.table.layout.second_copy if recognition else None
    if recognition is None or copy is None:
        return {}
    plain = [name for name in reader.specs if name in recognition.table.by_external]
    second = sum(copy.of(name) in reader.specs for name in plain)
    return {copy.plain: len(plain), copy.holds: second} if second else {}


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
