"""Conversions that change the container alone, and so work for any model: ``--layout as-is``.

Names, shapes, axis order and element types stay. What a container cannot hold is refused before anything is
written; tensors that share memory in a PyTorch file are written once where the target can say so, and in
full where it cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit._version import __version__
from ckptkit.base.errors import WHOLE_LISTS, ConversionError, UsageError, command
from ckptkit.base.tensors import DTYPES, DType, TensorSpec
from ckptkit.convert.moves import Move, TensorPlan
from ckptkit.convert.options import AS_IS, Options, check_target
from ckptkit.families.binding import Ignored
from ckptkit.families.leftovers import OPTIMIZER, slot_rule
from ckptkit.formats.base import Reader
from ckptkit.formats.builtin import format_of
from ckptkit.formats.names import FORMATS
from ckptkit.rules.language import IDENTITY, Binding

if TYPE_CHECKING:
    from ckptkit.registry import Entry

_SHOWN = 200
"""Tensors that one message names."""

_SOURCE = ("source_sha256", "source_index_sha256")


def plan_as_is(
    reader: Reader,
    options: Options,
    *,
    entry: Entry | None = None,
    provenance: Mapping[str, str] | None = None,
) -> TensorPlan:
    """Decide a conversion that keeps every tensor as it is, but for its container (and float precision).

    Parameters
    ----------
    reader : Reader
        The open source, of any model.
    options : Options
    entry, provenance
        As for `ckptkit.convert.plan`.

    Raises
    ------
    UsageError
        When options are given that speak of a family's architecture, or a copy of the weights is asked for
        that has no state dict of its own.
    ConversionError
        When the target cannot hold an element type, or there is no tensor.
    """
    refuse_family_options(options, f"--layout {AS_IS}")
    refuse_missing_copy(reader, options)
    ignored, left_out = unread(reader)
    moves = as_is_moves(reader, options)
    refuse_element_types(reader, options, [move.target for move in moves], left_out)
    shared = same_tensors(reader) if format_of(options.to).shares_tensors else {}
    return TensorPlan(
        source=reader.path,
        source_format=reader.format,
        to=options.to,
        layout=AS_IS,
        weights=reader.weights,
        moves=moves,
        ignored=ignored,
        metadata=carried_metadata(reader, options, AS_IS, entry) | dict(provenance or {}),
        notes=(*carried_notes(reader), *sharing_notes(reader, shared)),
        max_shard_size=options.max_shard_size,
        shared=shared,
        also=reader.also,
    )


def unread(reader: Reader) -> tuple[tuple[Ignored, ...], dict[str, str]]:
    """What cannot be read: an optimizer's state of tensors that can, by its rule; and all else, and why."""
    ignored = tuple(
        Ignored(name, rule.name, rule.reason)
        for name in reader.left_out
        for rule in [OPTIMIZER if name in reader.optimizer else slot_rule(name, reader.specs)]
        if rule is not None
    )
    by_rule = {one.name for one in ignored}
    return ignored, {name: why for name, why in reader.left_out.items() if name not in by_rule}


def as_is_moves(reader: Reader, options: Options) -> tuple[Move, ...]:
    """Each tensor's move to the same name and shape."""
    return tuple(
        Move(name, TensorSpec(name, target_dtype(spec, options), spec.shape, spec.stored), row, row)
        for name, spec in reader.specs.items()
        for row in (plain_row(name, spec.shape),)
    )


def plain_row(name: str, shape: tuple[int, ...]) -> Binding:
    """Row of a table that changes nothing."""
    return Binding(name, shape, name, shape, IDENTITY, trainable=True, part="body")


def target_dtype(spec: TensorSpec, options: Options) -> DType:
    """Element type in the target: ``--dtype`` casts floating tensors, all others stay."""
    return DTYPES[options.dtype] if options.dtype and spec.dtype.is_float else spec.dtype


def refuse_family_options(options: Options, mode: str) -> None:
    """Raise UsageError for options that need a known architecture.

    Parameters
    ----------
    options : Options
    mode : str
        The option that makes them senseless, for the message.
    """
    check_target(options)
    given = {
        "--no-head": not options.head,
        "--variant": options.variant is not None,
        "--allow-missing-bn": options.allow_missing_bn,
        "--set": bool(options.settings),
        "--resolution": options.resolution is not None,
    }
    senseless = [name for name, is_given in given.items() if is_given]
    if senseless:
        raise UsageError(
            f"{', '.join(senseless)} has no meaning with {mode}, which knows no architecture",
            hint=f"leave it out, or convert without {mode}",
        )


def refuse_missing_copy(reader: Reader, options: Options) -> None:
    """Raise UsageError when a copy of the weights is asked for that cannot be told from the other."""
    held = reader.weights or reader.metadata.get("weights")
    if options.weights not in ("auto", held):
        raise UsageError(
            f"{reader.path}: has no {options.weights} weights in a state dict of their own",
            hint="leave --weights out: every tensor is carried over",
        )


_RULES_HELP = "a file of --rules that names them under 'ignore' converts the rest"


def refuse_left_out(reader: Reader, names: Iterable[str]) -> None:
    """Raise ConversionError where there are tensors that cannot be read, naming all of them and why."""
    named = {name: reader.left_out[name] for name in names}
    if named:
        raise ConversionError(
            f"{reader.path}: {counted(len(named))} cannot be read: {in_words(named)}", hint=_RULES_HELP
        )


def refuse_element_types(
    reader: Reader, options: Options, specs: Iterable[TensorSpec], left_out: Mapping[str, str] | None = None
) -> None:
    """Raise ConversionError when the target cannot hold tensors or their names, with the way out.

    Parameters
    ----------
    reader : Reader
    options : Options
    specs : iterable of TensorSpec
        What the target should hold.
    left_out : mapping of str to str, optional
        Tensors that cannot even be read, and why not.
    """
    specs = list(specs)
    if not specs and not left_out:
        raise ConversionError(f"{reader.path}: no tensors to convert", hint=command("inspect", reader.path))
    refused = [spec for spec in specs if not holds(options.to, spec)]
    if not refused and not left_out:
        _refuse_names(reader.path, options, specs)
        return
    named = {spec.name: _type_in_words(spec.dtype) for spec in refused} | dict(left_out or {})
    able = [f for f in FORMATS if all(holds(f, spec) for spec in specs) and not _unloadable(f, specs)]
    ways = ["choose --to " + " or ".join(able)] if able and not left_out else []
    if not left_out and all(spec.dtype.is_float for spec in refused):
        ways.append("--dtype float32 casts floats")
    if left_out or any(spec.dtype.is_opaque for spec in refused):
        ways.append(_RULES_HELP)
    raise ConversionError(
        f"{reader.path}: {counted(len(named))} cannot be carried to {options.to}: {in_words(named)}",
        hint="; ".join(ways) or None,
    )


def _type_in_words(dtype: DType) -> str:
    without_type = dtype.is_opaque and dtype.name == "void16"
    return "void16: bfloat16 saved without its type looks so" if without_type else dtype.name


def _refuse_names(path: Path, options: Options, specs: Iterable[TensorSpec]) -> None:
    """Raise ConversionError for names that the target's own framework could not load."""
    lost = _unloadable(options.to, specs)
    if lost:
        target = format_of(options.to)
        why = in_words(dict.fromkeys(lost, target.names_rule))
        *others, last = (name for name in FORMATS if name != options.to)
        raise ConversionError(
            f"{path}: {target.title} could not load {counted(len(lost))}: {why}",
            hint=f"choose --to {', '.join(others)} or {last}, or give a file of --rules with such names",
        )


def _unloadable(format: str, specs: Iterable[TensorSpec]) -> Sequence[str]:
    return format_of(format).unloadable(spec.name for spec in specs)


def in_words(reasons: Mapping[str, str]) -> str:
    """Names by what is true of them: ``'a', 'b' (float8_e8m0fnu); 'c' (int4)``; of very many, the first.

    Examples
    --------
    >>> in_words({"a": "int4", "c": "a sparse tensor", "b": "int4"})
    "'a', 'b' (int4); 'c' (a sparse tensor)"
    """
    names: dict[str, list[str]] = {}
    limit = len(reasons) if WHOLE_LISTS.get() else _SHOWN
    for name, reason in islice(reasons.items(), limit):
        names.setdefault(reason, []).append(repr(name))
    said = "; ".join(f"{', '.join(group)} ({reason})" for reason, group in names.items())
    rest = len(reasons) - limit
    return f"{said}; and {rest} more" if rest > 0 else said


def holds(format: str, spec: TensorSpec) -> bool:
    """Whether a container can hold a tensor's element type.

    Examples
    --------
    >>> [name for name in FORMATS if holds(name, TensorSpec("w", DTYPES["complex128"], (2,)))]
    ['torch', 'tf', 'keras', 'npz']
    """
    return format_of(format).holds(spec)


def same_tensors(reader: Reader) -> dict[str, str]:
    """Tensors of the source that are another one under a second name, and which that is."""
    return dict(reader.same)


def carried_notes(reader: Reader) -> list[str]:
    """What is unusual, and which copy the reader took."""
    copy = reader.weights
    return [
        *reader.notes,
        *([f"the file holds raw weights and moving averages; taking {copy}"] if copy else []),
    ]


def sharing_notes(reader: Reader, shared: Mapping[str, str]) -> list[str]:
    """Say what became of tensors that share memory in the source."""
    expanded = len(reader.overlapping) - len(shared)
    notes = []
    if shared:
        once = _tensors(len(shared), "is another one", "are others")
        notes.append(f"{once} under a second name: written once, and shared as before")
    if expanded:
        views = _tensors(expanded, "shares", "share")
        notes.append(f"{views} memory with others: each is written by itself, in full")
    return notes


def counted(count: int) -> str:
    """``1 tensor`` or ``2 tensors``."""
    return f"{count} tensor" if count == 1 else f"{count} tensors"


def _tensors(count: int, one: str, many: str) -> str:
    return f"{counted(count)} {one if count == 1 else many}"


def carried_metadata(reader: Reader, options: Options, layout: str, entry: Entry | None) -> dict[str, str]:
    """The source container's own metadata, and where the conversion comes from."""
    metadata = {key: value for key, value in reader.metadata.items() if key not in _SOURCE}
    if metadata.get("format") == "pt" or reader.format != options.to:
        metadata.pop("format", None)  # speaks of the source's container; the writer says "pt" itself
    if entry is not None:
        metadata["entry"] = entry.id
    copy = reader.weights
    if copy:  # an entry's own word would not do: a file may hold both copies, and all of it is carried
        metadata["weights"] = copy
    return metadata | {"ckptkit_version": __version__, "layout": layout}
