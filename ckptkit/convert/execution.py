"""Carrying out a conversion: one streaming pass, then the result is read back and compared.

Tensors pass through a piece at a time, so memory does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import ConversionError, IntegrityError
from ckptkit.base.tensors import Array, RawTensor, TensorSpec, array_dtype, byte_pieces, dtype_of
from ckptkit.convert.moves import Move, TensorPlan
from ckptkit.convert.options import AS_IS, Options
from ckptkit.convert.planning import plan
from ckptkit.convert.rounding import RoundingLoss, rounding_loss
from ckptkit.families.base import CANONICAL, require_recognition
from ckptkit.families.binding import Weights
from ckptkit.formats.base import Reader, Writer, bytes_of
from ckptkit.formats.detect import open_reader, writer_for

if TYPE_CHECKING:
    from ckptkit.registry import Entry

_THREADS = 2
"""The work lies in numpy, crc32c and the system, which all let go of the interpreter lock."""

_BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Parameters
    ----------
    path : Path
        What to give to other commands: the file, or the prefix of a TensorFlow checkpoint.
    files : tuple of Path
        Every file written.
    checksums : mapping of str to int
        crc32c of each tensor's bytes as they were meant to be.
    losses : tuple of RoundingLoss
        Tensors of which rounding to another float type made values infinite or zero, in the plan's order.
    """

    path: Path
    files: tuple[Path, ...]
    checksums: Mapping[str, int]
    losses: tuple[RoundingLoss, ...] = ()


Progress = Callable[[int], None]


def execute(
    conversion: TensorPlan,
    reader: Reader,
    output: Path,
    *,
    force: bool = False,
    check: bool = True,
    progress: Progress | None = None,
    late: Callable[[], Mapping[str, str]] | None = None,
) -> Converted:
    """Carry out a plan, tensor by tensor.

    Parameters
    ----------
    conversion : TensorPlan
    reader : Reader
        The source the plan was made from; each tensor's stored checksum is verified as it is read.
    output : Path
        File to write; for ``tf`` the checkpoint's prefix.
    force : bool
        Replace an existing output.
    check : bool
        Read the result back and compare it with what was meant to be written.
    progress : callable, optional
        Called with the bytes of each tensor done.
    late : callable, optional
        Called when the tensors have been written; returns metadata to put in the place of values of the same
        length in the plan's.

    Raises
    ------
    UsageError
        When the output exists and ``force`` is false.
    FormatError
        When the source turns out damaged.
    IntegrityError
        When the result read back is not what was written; it does not stay.
    StorageError
        When the disk refuses.
    """
    sizes = {spec.name: spec.nbytes for spec in conversion.specs}
    checksums: dict[str, int] = {}
    losses: dict[str, RoundingLoss] = {}
    with _writer(conversion, output, force) as writer:
        for name, crc in _written(conversion, reader, writer, losses):
            checksums[name] = crc
            if progress:
                progress(sizes[name])
        checksums |= {name: checksums[other] for name, other in conversion.shared.items()}
        compare = partial(check_written, specs=conversion.specs, checksums=checksums, output=output)
        files = tuple(writer.finish(compare if check else None, late() if late else None))
    shard_index = next((file for file in files if file.name.endswith(".index.json")), None)
    lost = tuple(losses[spec.name] for spec in conversion.specs if spec.name in losses)
    return Converted(shard_index or output, files, checksums, lost)


def _written(
    conversion: TensorPlan, reader: Reader, writer: Writer, losses: dict[str, RoundingLoss]
) -> Iterator[tuple[str, int]]:
    """Write every tensor, on both cores where the container allows it; yields name and crc32c of each."""
    moves = {move.target.name: move for move in conversion.moves}

    def write(batch: Sequence[str]) -> list[tuple[str, int]]:
        return [(name, _carry(moves[name], reader, writer, losses)) for name in batch]

    if not writer.concurrent:
        for name in writer.order:
            yield name, _carry(moves[name], reader, writer, losses)
        return
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for written in pool.map(write, _batches([moves[name].target for name in writer.order])):
            yield from written
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or Ctrl+C: not the rest of the file first


def _carry(move: Move, reader: Reader, writer: Writer, losses: dict[str, RoundingLoss]) -> int:
    """Carry one tensor over, and check it against its source's checksum; returns crc32c of what was written.

    The check comes last, when the source's pages are in memory: a damaged tensor is in a temporary file only.
    """
    same_bytes = _is_unchanged(move, reader)
    raw = _raw(reader, move.source) if same_bytes else None  # always there where the type is opaque
    if raw is not None:
        crc = writer.write(move.target.name, raw)
    else:
        import numpy

        array = reader.read(move.source)
        moved = move.apply(array)
        with numpy.errstate(over="ignore", under="ignore"):  # told below, by tensor
            crc = writer.write(move.target.name, moved)
        _note_loss(move, array if move.resize is None else moved, losses)  # any order: this one is quicker
    reader.check(move.source, crc if same_bytes else None)
    reader.release(move.source)
    return crc


def _note_loss(move: Move, array: Array, losses: dict[str, RoundingLoss]) -> None:
    """Add what rounding to the target's type loses; each tensor has its own key, so threads do not meet."""
    source = dtype_of(array)
    if source is move.target.dtype or not (source.is_float and move.target.dtype.is_float):
        return
    loss = rounding_loss(move.target.name, array, source, move.target.dtype)
    if loss is not None:
        losses[move.target.name] = loss


def _is_unchanged(move: Move, reader: Reader) -> bool:
    """Whether the source's own bytes go into the target as they are."""
    same_axes = move.inward.op == move.outward.op and move.resize is None
    return same_axes and reader.specs[move.source].dtype is move.target.dtype


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


def _writer(conversion: TensorPlan, output: Path, force: bool) -> Writer:
    special = {"max_shard_size": conversion.max_shard_size, "shared": conversion.shared}
    given = {key: value for key, value in special.items() if value}  # each is one format's own
    return writer_for(conversion.to)(output, conversion.specs, conversion.metadata, force=force, **given)


def check_written(
    path: Path, *, specs: Sequence[TensorSpec], checksums: Mapping[str, int], output: Path
) -> None:
    """Read a result back and compare names, dtypes, shapes and every byte.

    Parameters
    ----------
    path : Path
        Where it can be opened now.
    specs : sequence of TensorSpec
        What it should hold.
    checksums : mapping of str to int
        crc32c of each tensor's bytes as they were meant to be.
    output : Path
        What to call it in an error.

    Raises
    ------
    IntegrityError
        When anything differs from what was meant.
    """
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


class LoadedTensors(dict[str, Array]):
    """Arrays by name, and what else the file holds.

    Attributes
    ----------
    left_out : mapping of str to str
        Tensors of the file that are not among these: the rule that leaves each out, and why.
    also_in_file : mapping of str to str
        What is no tensor of the model (an epoch, the optimizer's state, texts), in a few words each.
    """

    def __init__(
        self, tensors: Mapping[str, Array], left_out: Mapping[str, str], also: Mapping[str, str]
    ) -> None:
        super().__init__(tensors)
        self.left_out: Mapping[str, str] = dict(left_out)
        self.also_in_file: Mapping[str, str] = dict(also)


def load_tensors(
    reader: Reader,
    layout: str = CANONICAL,
    *,
    weights: Weights = "auto",
    variant: str | None = None,
    entry: Entry | None = None,
) -> LoadedTensors:
    """Read a whole checkpoint under the names of a layout.

    Parameters
    ----------
    reader : Reader
    layout : str
        Default: the canonical (PyTorch) names; ``as-is`` the file's own, of any model.
    weights, variant
        As in `Options`.
    entry : Entry, optional
        The registry entry it belongs to.

    Returns
    -------
    LoadedTensors
        Contiguous arrays of their own; the reader may be closed afterwards.

    Raises
    ------
    ConversionError
        When tensors are missing, unexpected or of another shape. A missing head, or missing BatchNorm
        statistics, are accepted: what is there is loaded.
    """
    if layout == AS_IS:
        return _load_as_is(reader, Options("torch", layout=layout, weights=weights, variant=variant))
    head = require_recognition(reader.path, reader.specs, variant=variant).structure.num_classes is not None
    conversion = plan(
        reader,
        Options("npz", layout=layout, weights=weights, variant=variant, head=head, allow_missing_bn=True),
        entry=entry,
    )
    return LoadedTensors(read_moves(conversion.moves, reader), conversion.left_out, conversion.also)


def _load_as_is(reader: Reader, options: Options) -> LoadedTensors:
    from ckptkit.convert import as_is

    as_is.refuse_family_options(options, f"--layout {AS_IS}")
    as_is.refuse_missing_copy(reader, options)
    ignored, left_out = as_is.unread(reader)
    as_is.refuse_left_out(reader, left_out)
    packed = {spec.name: spec.dtype.name for spec in reader.specs.values() if array_dtype(spec) is None}
    if packed:
        raise ConversionError(
            f"{reader.path}: no array can hold elements that are not whole bytes: {as_is.in_words(packed)}"
        )
    by_rule = {one.name: one.why for one in ignored}
    return LoadedTensors(read_moves(as_is.as_is_moves(reader, options), reader), by_rule, reader.also)


def read_moves(moves: Sequence[Move], reader: Reader) -> dict[str, Array]:
    """Carry tensors into memory: target name to a contiguous array of its own, its checksum checked."""
    import numpy

    loaded = {}
    for move in moves:
        reader.check(move.source)
        loaded[move.target.name] = numpy.array(move.apply(reader.read(move.source)), order="C")
        reader.release(move.source)
    return loaded
