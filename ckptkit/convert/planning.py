"""Plans of conversions: every tensor's move, decided before a byte is written.

There are three ways to plan: by a family's layouts (`plan_by_layout`), names and axes as they are
(`plan_as_is`), and by a user's own rules (`convert.by_rules`). A plan says how tensors are called and how
their axes are ordered; of the file, a `convert.execution.Target`, it knows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ckptkit._version import __version__
from ckptkit.base.axes import Region
from ckptkit.base.errors import WHOLE_LISTS, ConversionError, UsageError, command, listed
from ckptkit.base.tensors import Array, TensorSpec, copy_elements
from ckptkit.base.text import counted
from ckptkit.families.base import Family, Structure
from ckptkit.families.binding import FileFacts, Ignored, Match, Weights, match
from ckptkit.families.layouts import OPTIMIZER, slot_rule, whole_model
from ckptkit.families.recognition import Recognition
from ckptkit.formats.base import Reader
from ckptkit.rules.language import IDENTITY, Binding, Ignore, Table

if TYPE_CHECKING:
    from typing_extensions import Self

    from ckptkit.registry.schema import Entry

AS_IS = "as-is"
"""In place of a layout's name: names and axes of the source."""

Resize: TypeAlias = "Callable[[Array, tuple[int, int]], Array]"
"""Takes a canonical tensor and the rows and columns wanted, its last axes; makes a copy."""


@dataclass(frozen=True)
class Move:
    """One tensor's way from source to target."""

    source: str  # name in the source file
    target: TensorSpec  # name, dtype and shape in the result
    inward: Binding  # the tensor's row in the source's table
    outward: Binding  # and in the result's
    resize: Resize | None = None
    cut: Region | None = None  # what of the source's tensor is taken; None: all of it
    fixed_dtype: bool = False  # whether its element type was chosen for it alone

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors of the source that it is made of."""
        return (self.source,)

    @property
    def op(self) -> str:
        """What happens to the axes, for people."""
        if self.resize is not None:
            return f"resize to {'x'.join(map(str, self.outward.canonical_shape[-2:]))}"
        ops = () if self.inward.op == self.outward.op else (self.inward.op, self.outward.op.inverse)
        steps = [op.name for op in ops if not op.is_identity]
        turned = " ∘ ".join(reversed(steps)) or IDENTITY.name
        if self.cut is None:
            return turned
        return "split" if turned == IDENTITY.name else f"split, {turned}"

    @property
    def is_whole(self) -> bool:
        """Whether the source's elements go into the target in their own order."""
        return self.inward.op == self.outward.op and self.resize is None and self.cut is None

    def array(self, read: Callable[[str], Array]) -> Array:
        """The target's values, of the source's element type."""
        return self.apply(read(self.source))

    def apply(self, array: Array) -> Array:
        """View of the source tensor in the target's axis order; a copy only where it is resized."""
        if self.cut is not None:
            array = self.cut.of(array)
        if self.inward.op == self.outward.op and self.resize is None:
            return array
        canonical = self.inward.op.to_canonical(array, self.inward.canonical_shape)
        if self.resize is not None:
            rows, columns = self.outward.canonical_shape[-2:]
            canonical = self.resize(canonical, (rows, columns))
        return self.outward.op.to_external(canonical, self.outward.external_shape)


@dataclass(frozen=True)
class Join:
    """Several tensors of the source on their way into one."""

    target: TensorSpec
    pieces: tuple[Move, ...]
    places: tuple[Region, ...]  # where in the target each of them goes
    fixed_dtype: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors of the source that it is made of."""
        return tuple(piece.source for piece in self.pieces)

    @property
    def op(self) -> str:
        """What happens to the axes, for people."""
        turned = self.pieces[0].op
        return "join" if turned == IDENTITY.name else f"join, {turned}"

    is_whole = False

    def array(self, read: Callable[[str], Array], done: Callable[[str], object] | None = None) -> Array:
        """The target's values, of the source's element type; ``done`` is told each part that was copied."""
        import numpy

        whole: Array | None = None
        for piece, place in zip(self.pieces, self.places, strict=True):
            part = piece.array(read)
            if whole is None:
                whole = numpy.empty(self.target.shape, part.dtype)
            copy_elements(part, place.of(whole))
            if done is not None:
                done(piece.source)
        assert whole is not None
        return whole


@dataclass(frozen=True)
class Filling:
    """A tensor of the target that the source lacks."""

    target: TensorSpec
    value: Literal["zeros", "ones", "arange"]

    sources = ()
    is_whole = False
    fixed_dtype = True

    @property
    def op(self) -> str:
        """What it is filled with, for people."""
        return f"fill with {self.value}"

    def array(self, read: Callable[[str], Array]) -> Array:
        """Its values."""
        import numpy

        shape, dtype = self.target.shape, self.target.dtype.numpy
        if self.value == "arange":
            return numpy.arange(self.target.size).astype(dtype).reshape(shape)
        return (numpy.zeros if self.value == "zeros" else numpy.ones)(shape, dtype)


AnyMove: TypeAlias = "Move | Join | Filling"


@dataclass(frozen=True)
class Plan:
    """What a conversion will do to each tensor, of any model."""

    source: Path
    source_format: str
    layout: str
    weights: str | None
    moves: tuple[AnyMove, ...]
    ignored: tuple[Ignored, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]
    shared: Mapping[str, str] = field(default_factory=dict)  # tensors that are another under a second name
    overlapping: int = 0  # how many tensors of the source share memory with others
    unread: Mapping[str, str] = field(default_factory=dict)  # neither readable nor left out by rule, and why
    also: Mapping[str, str] = field(default_factory=dict)  # what else is in the source, in a few words each

    @property
    def origin(self) -> str:
        """Format and layout of the source, for people."""
        return self.source_format

    @property
    def subject(self) -> str:
        """What the file was recognised as, for people."""
        return "any model"

    @property
    def specs(self) -> list[TensorSpec]:
        """Specs of the result's tensors, in the architecture's order."""
        return [move.target for move in self.moves]

    @property
    def left_out(self) -> dict[str, str]:
        """Tensors of the source that a rule leaves out, and which rule and why."""
        return {one.name: one.why for one in self.ignored}

    @property
    def filled(self) -> dict[str, str]:
        """Tensors of the result that are not the source's, and what they are filled with."""
        return {move.target.name: move.value for move in self.moves if isinstance(move, Filling)}

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data in the result."""
        return sum(spec.nbytes for spec in self.specs if spec.name not in self.shared)

    def with_metadata(self, more: Mapping[str, str]) -> Self:
        """The same plan with more metadata."""
        return replace(self, metadata={**self.metadata, **more})


# -- by a family's layouts -----------------------------------------------------------------------------------

_CARRIED = ("entry", "weights", "normalization", "resolution", "position_tables", "outputs")
"""Metadata that stays true of a converted file's conversions."""

_CALIBRATION = ("bn_statistics", "bn_images", "bn_images_sha256", "bn_method", "bn_preprocessing")
"""Metadata of a file whose BatchNorm statistics were recomputed, which stay so in its conversions."""

_NO_HEAD = Ignore("head", "", "left out by --no-head")


@dataclass(frozen=True)
class FamilyPlan(Plan):
    """The plan for a checkpoint of a known family."""

    moves: tuple[Move | Filling, ...]
    recognition: Recognition = field(kw_only=True)

    @property
    def origin(self) -> str:
        """Format and layout of the source, for people."""
        return f"{self.source_format}/{self.recognition.layout}"

    @property
    def subject(self) -> str:
        """The variant."""
        return self.recognition.variant


def plan_by_layout(
    reader: Reader,
    recognition: Recognition,
    layout: str,
    *,
    weights: Weights = "auto",
    head: bool = True,
    allow_missing_bn: bool = False,
    settings: Mapping[str, Any] | None = None,
    resolution: tuple[int, int] | None = None,
    entry: Entry | None = None,
) -> FamilyPlan:
    """Plan a conversion to another layout of the file's family; refuses a file that does not fit it."""
    family, structure = recognition.family, recognition.structure
    known = FileFacts.of(reader, entry)
    found = match(reader.specs, recognition, weights=weights, known=known, head=head)
    known_values = family.known_settings(
        given=settings or {},
        entry=entry,
        metadata=reader.metadata,
        path=reader.path,
        layout=recognition.layout,
    )
    if not head:
        structure = replace(structure, num_classes=None)
        layout = (family.layouts[layout].headless if layout in family.layouts else None) or layout
    if resolution is not None:
        structure = _resized(reader, structure, family.table_sizes_at(resolution, known_values))
    table = family.table(layout, recognition.variant, structure)
    for what, hint in _misfits(reader, found, entry, head=head, allow_missing_bn=allow_missing_bn):
        raise ConversionError(f"{reader.path}: {what}", hint=hint)
    _refuse_another_function(reader, family, known_values, table)
    moves = tuple(moves_to(reader, found, table.bindings))
    dropped = _dropped(found, table)
    _refuse_values(reader, found, dropped, table)
    copy = found.weights or known.available_copy
    return FamilyPlan(
        source=reader.path,
        source_format=reader.format,
        recognition=recognition,
        layout=layout,
        weights=found.weights,
        moves=moves,
        ignored=(*dropped, *found.ignored),
        metadata={
            **_metadata(reader, found, layout, structure, entry),
            **_describe_resizing(resolution, moves),
            **{key: json.dumps(value) for key, value in known_values.items()},
            **({"weights": copy} if copy else {}),
        },
        notes=tuple(_notes(reader, found, known_values)),
        also=reader.also,
    )


def _resized(reader: Reader, structure: Structure, sizes: tuple[tuple[int, int], ...]) -> Structure:
    """The structure with position tables of other sizes."""
    if not structure.pos_emb:
        raise UsageError(
            f"{reader.path} has no position tables to resize", hint="it fits every resolution as it is"
        )
    if structure.table_sizes not in (None, sizes):
        raise UsageError(
            f"{reader.path}: its position tables were resized already"
            + (f" ({how})" if (how := reader.metadata.get("position_tables")) else ""),
            hint="resize those of the original file",
        )
    return replace(structure, table_sizes=sizes)


def _describe_resizing(resolution: tuple[int, int] | None, moves: Sequence[AnyMove]) -> dict[str, str]:
    """How the metadata describes ``--resolution``."""
    if resolution is None:
        return {}
    height, width = resolution
    described = {"resolution": str(height) if height == width else f"{height}x{width}"}
    resized = [move.outward for move in moves if isinstance(move, Move) and move.resize]
    sizes = dict.fromkeys("x".join(map(str, row.canonical_shape[-2:])) for row in resized)
    if sizes:
        described["position_tables"] = f"resized to {', '.join(sizes)} for an input of {height}x{width}"
    return described


def moves_to(reader: Reader, found: Match, rows: Iterable[Binding]) -> Iterator[Move | Filling]:
    """The moves to those rows of a table that the file has, or that are zeros in all files of its layout."""
    zeros = found.recognition.table.layout.zeros
    for row in rows:
        if row.canonical in found.sources:
            yield _move_to(reader, found, row)
        elif row.part in zeros:
            beside = next(reader.specs[name].dtype for name in found.sources.values())
            yield Filling(TensorSpec(row.external, beside, row.external_shape), "zeros")


def _move_to(reader: Reader, found: Match, outward: Binding) -> Move:
    source = found.sources[outward.canonical]
    inward = found.recognition.table.by_canonical[outward.canonical]
    resized = inward.canonical_shape != outward.canonical_shape  # of position tables only
    return Move(
        source,
        TensorSpec(outward.external, reader.specs[source].dtype, outward.external_shape),
        inward,
        outward,
        resize=found.recognition.family.resized_table if resized else None,
    )


def _dropped(found: Match, target: Table) -> list[Ignored]:
    """Tensors of the source that are not in the result: a head, or what its layout has no names for."""
    dropped = []
    for binding in found.recognition.table.bindings:
        if binding.canonical in found.sources and binding.canonical not in target.by_canonical:
            rules = {**target.layout.lacks, **target.layout.zeros}
            rule = rules.get(binding.part, _NO_HEAD)
            dropped.append(Ignored(found.sources[binding.canonical], rule.name, rule.reason))
    return dropped


def _refuse_values(reader: Reader, found: Match, dropped: Sequence[Ignored], target: Table) -> None:
    """Refuse to leave out what the target's layout takes for zeros, where it is not."""
    rules = {rule.name for rule in target.layout.zeros.values()}
    lost = {one.name: one.reason for one in dropped if one.rule in rules and reader.read(one.name).any()}
    if lost:
        raise ConversionError(
            f"{reader.path}: layout {target.layout.name} has no place for {counted(len(lost), 'tensor')} "
            f"with other values than 0: {by_reason(lost)}",
            hint="choose another --layout",
        )


def _refuse_another_function(reader: Reader, family: Family, known: Mapping[str, Any], target: Table) -> None:
    """Refuse a layout whose code computes another function than the source's."""
    settings = {**family.default_settings, **known}
    for key, theirs in target.layout.settings.items():
        if key not in settings:
            raise ConversionError(
                f"{reader.path}: {key} is not known; code that reads layout {target.layout.name} has "
                f"{json.dumps(theirs)}",
                hint=f"give --set {key}={json.dumps(theirs)} if that is so of the file",
            )
        if settings[key] != theirs:
            raise ConversionError(
                f"{reader.path}: {key} is {json.dumps(settings[key])}; code that reads layout "
                f"{target.layout.name} has {json.dumps(theirs)}, which is another function",
                hint="choose another --layout",
            )


def _misfits(
    reader: Reader, found: Match, entry: Entry | None, *, head: bool, allow_missing_bn: bool
) -> Iterator[tuple[str, str]]:
    """Why a file does not fit its architecture, and what to do: the first reason is the one to give."""
    path, recognition = reader.path, found.recognition
    variant, has = recognition.variant, recognition.structure.pos_emb
    if entry is not None and entry.pos_emb not in (None, has):
        yield (
            f"{'has' if has else 'lacks'} the position embedding that {entry.id} {'lacks' if has else 'has'}",
            f"is it the file of another entry? see 'ckptkit show {entry.id}'",
        )
    if found.unread:
        yield unread_in_words(found.unread), RULES_HELP
    another = f"name another variant with --variant, or look at the tensors. {command('inspect', path)}"
    for binding, spec in found.wrong_shape:
        yield (
            f"{counted(len(found.wrong_shape), 'tensor', 'have')} another shape than "
            f"{variant} needs: {spec.name} "
            f"is {list(spec.shape)} instead of {list(binding.external_shape)}",
            another,
        )
    if found.lacks_bn_statistics and not allow_missing_bn:
        yield (
            "no BatchNorm moving statistics in this file (one of the first uploads?); "
            "its predictions would be meaningless",
            "fetch the re-uploaded file, or give --allow-missing-bn to convert what is there",
        )
    optional = {"head": not head, "bn_statistics": found.lacks_bn_statistics}
    if missing := [row.external for row in found.missing if not optional.get(row.part)]:
        yield (
            f"{_some(missing)} missing for {variant}",
            f"the file is incomplete, or of another variant: see --variant. {command('verify', path)}",
        )
    if recognition.structure.num_classes is None and head:
        whole = whole_model(one.reason for one in found.ignored) if found.around else ""
        yield (
            f"a {whole}'s checkpoint: backbone {variant} with {', '.join(found.around)}"
            if found.around
            else "no classification head in this file",
            "give --no-head to convert the backbone",
        )
    if second := [name for name in found.unexpected if name in reader.namesakes]:
        yield (
            f"{_some(second)} of a name that another one has too, with other values: "
            f"{reader.namesakes[second[0]]}. Nothing tells which one is meant",
            f"--layout {AS_IS} carries both, --rules FILE can take one",
        )
    if found.unexpected:
        yield f"{_some(list(found.unexpected))} not known to {variant} nor to any rule", another
    dtypes = {name: reader.specs[name].dtype for name in found.sources.values()}
    if opaque := {name: dtype.name for name, dtype in dtypes.items() if dtype.is_opaque}:
        yield (
            f"element types that {variant} cannot have: {by_reason(opaque)}",
            f"--layout {AS_IS} carries their bytes to a format that has the type",
        )


def _some(names: Sequence[str]) -> str:
    return f"{counted(len(names), 'tensor')} ({listed(names, 3)})"


def _notes(reader: Reader, found: Match, settings: Mapping[str, Any]) -> list[str]:
    notes = list(reader.notes)
    if found.weights is not None:
        notes.append(f"the file holds raw weights and moving averages; taking {found.weights}")
    second = found.recognition.table.layout.second_copy
    if found.weights == "raw" and second is not None and second.holds == "raw":
        notes.append("its BatchNorm statistics are those of the moving averages, there are no others")
    if found.lacks_bn_statistics:
        notes.append("no BatchNorm moving statistics: good for initialising training, not for predictions")
    notes += [
        f"{key} is not known, so it is not in the result and models built from it need it "
        f"({found.recognition.family.set_option(key)} writes it in)"
        for key in found.recognition.family.missing_settings(settings)
    ]
    return notes


def _metadata(
    reader: Reader, found: Match, layout: str, structure: Structure, entry: Entry | None
) -> dict[str, str]:
    """Provenance that travels in the converted file."""
    recognition = found.recognition
    metadata = {key: reader.metadata[key] for key in _CARRIED if key in reader.metadata}
    if entry is not None:
        metadata["entry"] = entry.id
        metadata |= {
            key: str(value)
            for key, value in (("normalization", entry.normalization), ("resolution", entry.test_resolution))
            if value is not None
        }
    if recognition.table.layout.tags:
        metadata["outputs"] = "tags"
    if recognition.family.has_pos_emb:
        metadata["pos_emb"] = "true" if structure.pos_emb else "false"
    calibrated = reader.metadata.get("bn_statistics") == "recalibrated" and not found.lacks_bn_statistics
    return metadata | {
        "bn_statistics": "missing" if found.lacks_bn_statistics else "present",
        **{key: reader.metadata[key] for key in _CALIBRATION if calibrated and key in reader.metadata},
        "ckptkit_version": __version__,
        "family": recognition.family.name,
        "variant": recognition.variant,
        "layout": layout,
        "num_classes": str(structure.num_classes or 0),
    }


# -- as is ---------------------------------------------------------------------------------------------------

_SHOWN = 200
"""Tensors that one message names."""

_SOURCE = ("source_sha256", "source_index_sha256")


def plan_as_is(reader: Reader, *, weights: Weights = "auto", entry: Entry | None = None) -> Plan:
    """Plan a conversion that keeps every name, shape and axis order, of any model."""
    refuse_missing_copy(reader, weights)
    ignored, unread = _unread(reader)
    rows = [(spec, plain_row(name, spec.shape)) for name, spec in reader.specs.items()]
    moves = tuple(Move(spec.name, spec, row, row) for spec, row in rows)
    return replace(
        plan_of_any_model(reader, AS_IS, entry),
        moves=moves,
        ignored=ignored,
        unread=unread,
        shared=dict(reader.same),
    )


def plan_of_any_model(reader: Reader, layout: str, entry: Entry | None) -> Plan:
    """What a plan says of the file itself, whose architecture is not known; it has no moves yet."""
    copy = reader.weights
    taken = [f"the file holds raw weights and moving averages; taking {copy}"] if copy else []
    return Plan(
        source=reader.path,
        source_format=reader.format,
        layout=layout,
        weights=copy,
        moves=(),
        ignored=(),
        metadata=_carried_metadata(reader, layout, entry),
        notes=(*reader.notes, *taken),
        overlapping=len(reader.overlapping),
        also=reader.also,
    )


def _carried_metadata(reader: Reader, layout: str, entry: Entry | None) -> dict[str, str]:
    """The source's own metadata, and where the conversion comes from."""
    metadata = {key: value for key, value in reader.metadata.items() if key not in _SOURCE}
    if metadata.get("format") == "pt":
        metadata.pop("format")  # the writer adds it itself
    if entry is not None:
        metadata["entry"] = entry.id
    if reader.weights:  # the entry's would not do: a file may hold both copies, and all of it is carried
        metadata["weights"] = reader.weights
    return metadata | {"ckptkit_version": __version__, "layout": layout}


def _unread(reader: Reader) -> tuple[tuple[Ignored, ...], dict[str, str]]:
    """What cannot be read: an optimizer's state of tensors that can, by its rule; and all else, and why."""
    ignored = tuple(
        Ignored(name, rule.name, rule.reason)
        for name in reader.left_out
        for rule in [OPTIMIZER if name in reader.optimizer else slot_rule(name, reader.specs)]
        if rule is not None
    )
    by_rule = {one.name for one in ignored}
    return ignored, {name: why for name, why in reader.left_out.items() if name not in by_rule}


def plain_row(name: str, shape: tuple[int, ...]) -> Binding:
    """Row of a table that changes nothing."""
    return Binding(name, shape, name, shape, IDENTITY, trainable=True, part="body")


def refuse_missing_copy(reader: Reader, weights: Weights) -> None:
    """Refuse a choice of copy where the file's state dicts do not tell the copies apart."""
    held = reader.weights or reader.metadata.get("weights")
    if weights not in ("auto", held):
        raise UsageError(
            f"{reader.path}: has no {weights} weights in a state dict of their own",
            hint="leave --weights out: every tensor is carried over",
        )


def refuse_family_options(given: Sequence[str], mode: str) -> None:
    """Refuse options that need a known architecture in a mode that knows none."""
    if given:
        raise UsageError(
            f"{', '.join(given)} cannot be used with {mode}, which ignores the architecture",
            hint=f"leave it out, or convert without {mode}",
        )


RULES_HELP = "a file of --rules that names them under 'ignore' converts the rest"


def unread_in_words(unread: Mapping[str, str]) -> str:
    """How many tensors cannot be read, all of them by name, and why."""
    return f"{counted(len(unread), 'tensor')} cannot be read: {by_reason(unread)}"


def by_reason(reasons: Mapping[str, str]) -> str:
    """Names by what is true of them: ``'a', 'b' (float8_e8m0fnu); 'c' (int4)``; of very many, the first.

    Examples
    --------
    >>> by_reason({"a": "int4", "c": "a sparse tensor", "b": "int4"})
    "'a', 'b' (int4); 'c' (a sparse tensor)"
    """
    names: dict[str, list[str]] = {}
    limit = len(reasons) if WHOLE_LISTS.get() else _SHOWN
    for name, reason in islice(reasons.items(), limit):
        names.setdefault(reason, []).append(repr(name))
    listing = "; ".join(f"{', '.join(group)} ({reason})" for reason, group in names.items())
    rest = len(reasons) - limit
    return f"{listing}; and {rest} more" if rest > 0 else listing
