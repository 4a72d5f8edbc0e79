"""Carrying out a plan: a target file, one streaming pass, then the result is read back and compared.

Tensors pass through a piece at a time, so memory does not grow with the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import ConversionError, IntegrityError, UsageError, choose_from, command
from ckptkit.base.progress import Advance
from ckptkit.base.tensors import (
    DTYPES,
    FLOAT_DTYPES,
    Array,
    DType,
    RawTensor,
    TensorSpec,
    byte_pieces,
    contiguous_chunks,
    dtype_of,
)
from ckptkit.base.text import counted
from ckptkit.convert.planning import RULES_HELP, AnyMove, FamilyPlan, Join, Move, Plan, by_reason
from ckptkit.formats.base import Format, Reader, Writer, bytes_of
from ckptkit.formats.builtin import BUILT_IN, format_of
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.names import FORMATS
from ckptkit.formats.shards import INDEX_ENDINGS

if TYPE_CHECKING:
    import numpy as np

    from ckptkit.formats.sharded_writing import Share

AnyPlan = TypeVar("AnyPlan", bound=Plan)

_THREADS = 2
"""The work is done by numpy, crc32c and the system, which all let go of the interpreter lock."""

_BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Target:
    """The file that a conversion makes, whatever is in it."""

    format: str
    dtype: str | None = None  # of all floating tensors; None leaves them as they are
    max_shard_size: int | None = None  # bytes, where the format has shards

    def __post_init__(self) -> None:
        if self.kind.read_only:
            raise UsageError(f"{self.format} files are read, not written: {self.kind.read_only}")
        if self.dtype is not None and self.dtype not in FLOAT_DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}", hint=choose_from(FLOAT_DTYPES))
        if self.max_shard_size is not None and not self.kind.shards:
            *first, last = (name for name in FORMATS if BUILT_IN[name].shards)
            able = f"{', '.join(first)} and {last}"
            raise UsageError(
                f"--max-shard-size does not apply to {self.format}", hint=f"only {able} have shards"
            )

    @property
    def kind(self) -> Format:
        """What is known of its format."""
        return format_of(self.format)

    def fit(self, plan: AnyPlan) -> AnyPlan:
        """The plan with this file's element types, metadata and notes; refuses what the file cannot hold.

        Fitting a plan twice is the same as fitting it once.
        """
        moves = tuple(self._cast(move) for move in plan.moves)
        self._refuse_element_types(plan, [move.target for move in moves])
        shared = plan.shared if self.kind.shares_tensors else {}
        metadata = dict(plan.metadata)
        if plan.source_format != self.format:
            metadata.pop("format", None)  # speaks of the source's container
        notes = [note for note in self._notes(plan, len(shared)) if note not in plan.notes]
        return replace(plan, moves=moves, shared=shared, metadata=metadata, notes=(*plan.notes, *notes))

    def _cast(self, move: AnyMove) -> AnyMove:
        spec = move.target
        if move.fixed_dtype or self.dtype is None or not spec.dtype.is_float or spec.dtype.name == self.dtype:
            return move
        return replace(move, target=replace(spec, dtype=DTYPES[self.dtype]))

    def _notes(self, plan: Plan, shared: int) -> Iterator[str]:
        if shared:
            once = f"{counted(shared, 'tensor')} {'is another one' if shared == 1 else 'are others'}"
            yield f"{once} under a second name: written once, and shared as before"
        if views := plan.overlapping - shared:
            share = counted(views, "tensor", "share")
            yield f"{share} memory with others: each is written by itself, in full"
        if self.kind.only_usual_layout and isinstance(plan, FamilyPlan):
            usual = plan.recognition.family.layout_for(self.format)
            if plan.layout != usual:
                wrong = f"{self.kind.title} cannot load a file in layout {plan.layout}"
                yield f"{wrong}; leave --layout out for its own, {usual}"

    def _refuse_element_types(self, plan: Plan, specs: Sequence[TensorSpec]) -> None:
        """Refuse tensors whose type or name the format cannot hold, all at once and with the way out."""
        if not specs and not plan.unread:
            raise ConversionError(
                f"{plan.source}: no tensors to convert", hint=command("inspect", plan.source)
            )
        refused = [spec for spec in specs if not self.kind.holds(spec)]
        if not refused and not plan.unread:
            if not isinstance(plan, FamilyPlan):
                self._refuse_names(plan.source, specs)
            return
        named = {spec.name: _describe_type(spec.dtype) for spec in refused} | dict(plan.unread)
        ways = []
        if not plan.unread:
            if able := [name for name in FORMATS if _can_hold(format_of(name), specs)]:
                ways.append("choose --to " + " or ".join(able))
            if all(spec.dtype.is_float for spec in refused):
                ways.append("--dtype float32 casts floats")
        if plan.unread or any(spec.dtype.is_opaque for spec in refused):
            ways.append(RULES_HELP)
        raise ConversionError(
            f"{plan.source}: {counted(len(named), 'tensor')} cannot be carried to {self.format}: "
            f"{by_reason(named)}",
            hint="; ".join(ways) or None,
        )

    def _refuse_names(self, source: Path, specs: Sequence[TensorSpec]) -> None:
        """Refuse names that the format's own framework could not load."""
        lost = dict.fromkeys(self.kind.unloadable(spec.name for spec in specs), self.kind.names_rule)
        if lost:
            *others, last = (name for name in FORMATS if name != self.format)
            count = counted(len(lost), "tensor")
            raise ConversionError(
                f"{source}: {self.kind.title} could not load {count}: {by_reason(lost)}",
                hint=f"choose --to {', '.join(others)} or {last}, or give a file of --rules with such names",
            )

    def writer(self, plan: Plan, output: Path, *, force: bool, share: Share | None = None) -> Writer:
        """Open the output for writing a fitted plan, or one shard of it."""
        special = {"max_shard_size": self.max_shard_size, "shared": plan.shared, "share": share}
        given = {key: value for key, value in special.items() if value}  # each is one format's own
        return writer_for(self.format)(output, plan.specs, plan.metadata, force=force, **given)


def _can_hold(format: Format, specs: Sequence[TensorSpec]) -> bool:
    return all(format.holds(spec) for spec in specs) and not format.unloadable(spec.name for spec in specs)


def _describe_type(dtype: DType) -> str:
    without_type = dtype.is_opaque and dtype.name == "void16"
    return "void16: bfloat16 saved without its type looks so" if without_type else dtype.name


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    path: Path  # what to give to other commands: the file, or the prefix of a TensorFlow checkpoint
    files: tuple[Path, ...]
    checksums: Mapping[str, int]  # crc32c of each tensor's bytes as they were meant to be
    losses: tuple[RoundingLoss, ...] = ()  # where rounding made values infinite or zero, in the plan's order


def execute(
    plan: Plan,
    reader: Reader,
    target: Target,
    output: Path,
    *,
    force: bool = False,
    check: bool = True,
    progress: Advance | None = None,
    late: Callable[[], Mapping[str, str]] | None = None,
    share: Share | None = None,
) -> Converted:
    """Carry out a plan, tensor by tensor; of a ``share``, only its shard.

    ``late`` is called when the tensors have been written: it returns metadata that replace values of the same
    length in the plan's, so that a large source is hashed meanwhile.
    """
    plan = target.fit(plan)
    sizes = {spec.name: spec.nbytes for spec in plan.specs}
    checksums: dict[str, int] = {}
    losses: dict[str, RoundingLoss] = {}
    with target.writer(plan, output, force=force, share=share) as writer:
        for name, crc in _written(plan, reader, writer, losses):
            checksums[name] = crc
            if progress:
                progress(sizes[name])
        checksums |= {name: checksums[other] for name, other in plan.shared.items() if other in checksums}
        specs = [spec for spec in plan.specs if spec.name in checksums]
        compare = partial(check_written, specs=specs, checksums=checksums, output=output)
        files = tuple(writer.finish(compare if check else None, late() if late else None))
    shard_index = next((file for file in files if file.name.endswith(INDEX_ENDINGS)), None)
    lost = tuple(losses[spec.name] for spec in plan.specs if spec.name in losses)
    return Converted(shard_index or output, files, checksums, lost)


def _written(
    plan: Plan, reader: Reader, writer: Writer, losses: dict[str, RoundingLoss]
) -> Iterator[tuple[str, int]]:
    """Write every tensor, on both cores where the container allows it; yields name and crc32c of each."""
    moves = {move.target.name: move for move in plan.moves}
    source = _Source(reader)

    def write(batch: Sequence[str]) -> list[tuple[str, int]]:
        return [(name, _carry(moves[name], source, writer, losses)) for name in batch]

    if not writer.concurrent:
        for name in writer.order:
            yield name, _carry(moves[name], source, writer, losses)
        return
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for written in pool.map(write, _batches([moves[name].target for name in writer.order])):
            yield from written
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or Ctrl+C: not the rest of the file first


class _Source:
    """The file that is read; of a tensor that several moves take parts of, its array and that it is sound."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._held: dict[str, Array] = {}
        self._checked: set[str] = set()

    def read(self, name: str, *, keep: bool = False) -> Array:
        """One tensor; the last two that parts are taken of are kept: decompressing them takes long."""
        array = self._held.get(name)
        if array is None:
            array = self.reader.read(name)
            if keep:
                held = list(self._held.items())[-1:]
                self._held = dict([*held, (name, array)])
        return array

    def done(self, name: str, crc: int | None = None, *, again: bool = False) -> None:
        """Check a tensor after it was used, once, and let its pages go."""
        if not again or name not in self._checked:
            self.reader.check(name, crc)
            if again:
                self._checked.add(name)
        self.reader.release(name)


def _carry(move: AnyMove, source: _Source, writer: Writer, losses: dict[str, RoundingLoss]) -> int:
    """Carry one tensor over, and check it against its source's checksum; returns crc32c of what was written.

    The check comes last, when the source's pages are in memory: a damaged tensor is in a temporary file only.
    """
    same_bytes = _is_unchanged(move, source.reader)
    is_part = isinstance(move, Move) and move.cut is not None
    raw = _raw(source.reader, move.sources[0]) if same_bytes else None  # always there of an opaque type
    if raw is not None:
        crc = writer.write(move.target.name, raw)
    else:
        import numpy

        read = partial(source.read, keep=is_part)
        if isinstance(move, Move) and not is_part and move.resize is None:
            array = read(move.source)
            moved = move.apply(array)
        else:
            array = moved = move.array(read, source.done) if isinstance(move, Join) else move.array(read)
        with numpy.errstate(over="ignore", under="ignore"):  # reported below, by tensor
            crc = writer.write(move.target.name, moved)
        _note_loss(move, array, losses)  # in the order of the source where it can be: this is quicker
    if isinstance(move, Move):
        source.done(move.source, crc if same_bytes else None, again=is_part)
    return crc


def _note_loss(move: AnyMove, array: Array, losses: dict[str, RoundingLoss]) -> None:
    """Add what rounding to the target's type loses; each tensor has its own key, so threads do not meet."""
    source = dtype_of(array)
    if source is move.target.dtype or not (source.is_float and move.target.dtype.is_float):
        return
    loss = rounding_loss(move.target.name, array, source, move.target.dtype)
    if loss is not None:
        losses[move.target.name] = loss


def _is_unchanged(move: AnyMove, reader: Reader) -> bool:
    """Whether the source's own bytes go into the target as they are."""
    return move.is_whole and reader.specs[move.sources[0]].dtype is move.target.dtype


def _raw(reader: Reader, name: str) -> RawTensor | None:
    """A tensor's bytes without numpy, whose import takes a quarter of a short conversion."""
    return bytes_of(reader, name) if reader.specs[name].dtype.is_opaque else reader.raw(name)


def _batches(specs: Sequence[TensorSpec]) -> Iterator[list[str]]:
    """Cut a list of tensors into runs of at least a few megabytes: handing over a job has its price."""
    batch: list[str] = []
    size = 0
    for spec in specs:
        batch.append(spec.name)
        size += spec.nbytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def check_written(
    path: Path, *, specs: Sequence[TensorSpec], checksums: Mapping[str, int], output: Path
) -> None:
    """Read a result back and compare names, dtypes, shapes and every byte."""
    with open_reader(path) as written:
        wrong = [spec.name for spec in specs if written.specs.get(spec.name) != spec]
        wrong += [name for name in written.specs if name not in checksums]
        if not wrong:
            with ThreadPoolExecutor(_THREADS) as pool:
                differing = pool.map(partial(_differing, written, checksums), _batches(specs))
                wrong = [name for names in differing for name in names]
    if wrong:
        raise IntegrityError(
            f"{output}: {wrong[0]} read back differs from what was written; nothing was kept",
            hint="check the disk, then convert again",
        )


def _differing(written: Reader, checksums: Mapping[str, int], names: Sequence[str]) -> list[str]:
    differing = []
    for name in names:
        if tensor_crc32c(_raw(written, name) or written.read(name)) != checksums[name]:
            differing.append(name)
        written.release(name)
    return differing


def tensor_crc32c(array: Array | RawTensor) -> int:
    """crc32c of a tensor's bytes in C order, whatever its strides."""
    crc = 0
    for piece in byte_pieces(array):
        crc = crc32c(piece, crc)
    return crc


# -- what a change of float type loses -----------------------------------------------------------------------

# Values that become infinite, and values that become zero. Rounding is to the nearest, ties to even, as
# IEEE 754 has it. A value is beyond a type's range when it is at least half a step above the largest finite
# value; it vanishes when it is at most half the smallest subnormal. Both are decided by the bits of the
# source alone, compared as integers: a pass over a piece of a tensor, four times cheaper than rounding it to
# float16 (measured: 8 and 2 GB/s).

_SHAPES = {"float64": (11, 52), "float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}
"""Bits of exponent and of fraction."""


@dataclass(frozen=True)
class RoundingLoss:
    """What rounding did to one tensor."""

    name: str  # in the target file
    dtype: str  # the type it was rounded to
    overflowed: int  # finite values that became infinite
    flushed: int  # values other than zero that became zero

    def __str__(self) -> str:
        parts = []
        if self.overflowed:
            parts.append(f"{self.overflowed:,} to infinity")
        if self.flushed:
            parts.append(f"{self.flushed:,} to zero")
        return f"{self.name} ({', '.join(parts)})"


def rounding_loss(name: str, array: Array, source: DType, target: DType) -> RoundingLoss | None:
    """Count the values of a tensor that a float type cannot hold.

    Examples
    --------
    >>> import numpy
    >>> from ckptkit.base.tensors import DTYPES
    >>> values = numpy.array([1.0, 1e6, -1e6, 1e-9, 0.0, numpy.inf], "float32")
    >>> str(rounding_loss("w", values, DTYPES["float32"], DTYPES["float16"]))
    'w (2 to infinity, 1 to zero)'
    """
    limits = _limits(source.name, target.name)
    if limits is None:
        return None
    import numpy

    bits = numpy.dtype(f"<u{source.itemsize}")
    overflowed = flushed = 0
    for chunk in contiguous_chunks(array):
        over, under = _count(chunk.view(bits), limits)
        overflowed += over
        flushed += under
    return RoundingLoss(name, target.name, overflowed, flushed) if overflowed or flushed else None


@dataclass(frozen=True)
class _Limits:
    """Magnitudes of a source type, as the integers that their bits are."""

    magnitude: int
    """Mask of everything but the sign."""

    least_overflowing: int
    infinity: int
    greatest_flushed: int


def _count(bits: np.ndarray[Any, Any], limits: _Limits) -> tuple[int, int]:
    """Count what overflows and what is flushed; most pieces need two reductions only."""
    import numpy

    kind = bits.dtype.type
    magnitudes = bits & kind(limits.magnitude)
    overflowed = flushed = 0
    if magnitudes.size and magnitudes.max() >= limits.least_overflowing:
        beyond = (magnitudes >= kind(limits.least_overflowing)) & (magnitudes < kind(limits.infinity))
        overflowed = int(numpy.count_nonzero(beyond))
    magnitudes -= kind(1)  # zeros wrap around and become the greatest of all
    if magnitudes.size and magnitudes.min() < limits.greatest_flushed:
        flushed = int(numpy.count_nonzero(magnitudes < kind(limits.greatest_flushed)))
    return overflowed, flushed


@lru_cache(maxsize=32)
def _limits(source: str, target: str) -> _Limits | None:
    """Bounds of the loss-free magnitudes; None where the target's range holds all of the source's."""
    if source not in _SHAPES or target not in _SHAPES:
        return None
    exponent_bits, fraction_bits = _SHAPES[source]
    target_exponent_bits, target_fraction_bits = _SHAPES[target]
    target_bias = 2 ** (target_exponent_bits - 1) - 1
    if exponent_bits <= target_exponent_bits and fraction_bits <= target_fraction_bits:
        return None
    largest_rounding_down = (2 - 2.0 ** -(target_fraction_bits + 1)) * 2.0**target_bias
    half_smallest = 2.0 ** (1 - target_bias - target_fraction_bits - 1)
    overflowing = _bits_of(largest_rounding_down, source, round_up=True)
    flushed = _bits_of(half_smallest, source, round_up=False)
    infinity = (2**exponent_bits - 1) << fraction_bits
    if overflowing >= infinity and flushed == 0:
        return None
    magnitude = 2 ** (exponent_bits + fraction_bits) - 1
    return _Limits(magnitude, overflowing, infinity, flushed)


def _bits_of(value: float, dtype: str, *, round_up: bool) -> int:
    """Bits of the type's least magnitude not below a positive value, or greatest not above it."""
    exponent_bits, fraction_bits = _SHAPES[dtype]
    bias = 2 ** (exponent_bits - 1) - 1
    exponent = max(math.frexp(value)[1] - 1, 1 - bias)
    steps = math.ldexp(value, fraction_bits - exponent)  # exact: only the exponent changes
    whole = math.ceil(steps) if round_up else math.floor(steps)
    # A subnormal has no leading bit; a carry out of the fraction runs into the exponent as it should.
    bits: int = ((exponent + bias - 1) << fraction_bits) + whole
    infinity: int = (2**exponent_bits - 1) << fraction_bits
    return max(0, min(bits, infinity))


def describe_losses(losses: Sequence[RoundingLoss], *, shown: int | None = 3) -> str:
    """One sentence about everything that was lost, naming the first tensors.

    Examples
    --------
    >>> describe_losses([RoundingLoss("w", "float16", 2, 0)])
    'float16 cannot hold every value: 2 finite values became infinite, in 1 tensor: w (2 to infinity)'
    """
    over, under = (sum(counts) for counts in zip(*((x.overflowed, x.flushed) for x in losses), strict=True))
    named = ", ".join(str(loss) for loss in losses[:shown]) + (
        " …" if shown is not None and len(losses) > shown else ""
    )
    parts = []
    if over:
        parts.append(f"{counted(over, 'finite value')} became infinite")
    if under:
        parts.append(f"{counted(under, 'value')} became zero")
    where = counted(len(losses), "tensor")
    return f"{losses[0].dtype} cannot hold every value: {' and '.join(parts)}, in {where}: {named}"
