"""Conversions: a plan of tensor moves made before a byte is written, then one streaming pass.

A conversion may change the container (format), the names and axis order (layout), the element type
(dtype), or several at once. `plan` decides all of it and refuses what does not fit; `execute` moves bytes,
a piece of a tensor at a time, so memory does not grow with the file; `check_written` reads the result back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import __version__
from ckptkit.errors import ConversionError, IntegrityError, UsageError
from ckptkit.families.base import CANONICAL, Recognition, Structure, require_recognition
from ckptkit.families.binding import Ignored, Match, Weights, match
from ckptkit.formats.base import Reader, Writer
from ckptkit.layouts import IDENTITY, Binding
from ckptkit.tensors import DTYPES, Array, DType, TensorSpec, contiguous_chunks

if TYPE_CHECKING:
    from ckptkit.registry import Entry

FORMATS = ("safetensors", "torch", "tf", "npz")
FLOAT_DTYPES = ("float32", "float16", "bfloat16")

_CARRIED = ("entry", "source_sha256", "weights", "bn_statistics", "normalization", "resolution")
"""Metadata that stays true of a converted file's conversions."""


@dataclass(frozen=True)
class Options:
    """What a conversion should make.

    Parameters
    ----------
    to : str
        Format: ``safetensors``, ``torch``, ``tf`` or ``npz``.
    layout : str, optional
        Default: the family's usual one for that format.
    dtype : str, optional
        ``float32``, ``float16`` or ``bfloat16`` for all floating tensors; default: as they are.
    weights : {"auto", "ema", "raw"}
        Which copy where the source holds both.
    head : bool
        False leaves the classification head out.
    allow_missing_bn : bool
        Convert a file that lacks all BatchNorm statistics (MOAT's first uploads).
    variant : str, optional
        Overrides what the file is recognised as.
    """

    to: str
    layout: str | None = None
    dtype: str | None = None
    weights: Weights = "auto"
    head: bool = True
    allow_missing_bn: bool = False
    variant: str | None = None


@dataclass(frozen=True)
class Move:
    """One tensor's way from source to target.

    Parameters
    ----------
    source : str
        Name in the source file.
    target : TensorSpec
        Name, dtype and shape in the target file.
    inward, outward : Binding
        The tensor's rows in the source's table and in the target's.
    """

    source: str
    target: TensorSpec
    inward: Binding
    outward: Binding

    @property
    def op(self) -> str:
        """What happens to the axes, for people."""
        if self.inward.op == self.outward.op:
            return IDENTITY.name
        steps = [op.name for op in (self.inward.op, self.outward.op.inverse) if not op.is_identity]
        return " ∘ ".join(reversed(steps)) or IDENTITY.name

    def apply(self, array: Array) -> Array:
        """View of the source tensor in the target's axis order; never a copy."""
        if self.inward.op == self.outward.op:
            return array
        canonical = self.inward.op.to_canonical(array, self.inward.canonical_shape)
        return self.outward.op.to_external(canonical, self.outward.external_shape)


@dataclass(frozen=True)
class Plan:
    """Everything a conversion will do, decided before anything is written."""

    source: Path
    source_format: str
    recognition: Recognition
    to: str
    layout: str
    weights: str | None
    moves: tuple[Move, ...]
    ignored: tuple[Ignored, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def specs(self) -> list[TensorSpec]:
        """Specs of the target's tensors, in the architecture's order."""
        return [move.target for move in self.moves]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data in the target."""
        return sum(spec.nbytes for spec in self.specs)


def plan(
    reader: Reader, options: Options, *, entry: Entry | None = None, source_sha256: str | None = None
) -> Plan:
    """Decide a conversion.

    Parameters
    ----------
    reader : Reader
        The open source.
    options : Options
    entry : Entry, optional
        The registry entry the source belongs to; gives behaviour settings and provenance.
    source_sha256 : str, optional
        Checksum of the published file, for the provenance.

    Raises
    ------
    UsageError
        When the options make no sense for this file.
    ConversionError
        When tensors are missing, unexpected or of another shape.
    """
    if options.to not in FORMATS:
        raise UsageError(f"no format {options.to!r} to convert to", hint="one of " + ", ".join(FORMATS))
    if options.dtype is not None and options.dtype not in FLOAT_DTYPES:
        raise UsageError(
            f"no dtype {options.dtype!r} to convert to", hint="one of " + ", ".join(FLOAT_DTYPES)
        )
    recognition = require_recognition(
        reader.path, reader.specs, variant=options.variant or (entry.variant if entry else None)
    )
    found = match(reader.specs, recognition, weights=_weights(options, entry))
    structure = (
        replace(recognition.structure, num_classes=None) if not options.head else recognition.structure
    )
    layout = options.layout or recognition.family.default_layout[options.to]
    target_table = recognition.family.table(layout, recognition.variant, structure)
    _refuse_misfit(reader.path, found, options)
    dtype = DTYPES[options.dtype] if options.dtype else None
    moves = tuple(
        _move(reader, found, binding, dtype)
        for binding in target_table.bindings
        if binding.canonical in found.sources
    )
    dropped = _dropped_head(found, structure)
    return Plan(
        source=reader.path,
        source_format=reader.format,
        recognition=recognition,
        to=options.to,
        layout=layout,
        weights=found.weights,
        moves=moves,
        ignored=(*dropped, *found.ignored),
        metadata=_metadata(reader, found, structure, layout, dtype, entry, source_sha256),
        notes=tuple(_notes(reader, found)),
    )


def _weights(options: Options, entry: Entry | None) -> Weights:
    if options.weights == "auto" and entry is not None and entry.weights in ("ema", "raw"):
        # The entry says which weights were published; where the file holds only those, auto finds them.
        return "raw" if entry.weights == "raw" else "auto"
    return options.weights


def _move(reader: Reader, found: Match, outward: Binding, dtype: DType | None) -> Move:
    source = found.sources[outward.canonical]
    spec = reader.specs[source]
    target_dtype = dtype if dtype is not None and spec.dtype.is_float else spec.dtype
    return Move(
        source,
        TensorSpec(outward.external, target_dtype, outward.external_shape),
        found.recognition.table.by_canonical[outward.canonical],
        outward,
    )


def _dropped_head(found: Match, structure: Structure) -> list[Ignored]:
    if structure.num_classes is not None:
        return []
    return [
        Ignored(found.sources[b.canonical], "head", "left out by --no-head")
        for b in found.recognition.table.bindings
        if b.part == "head" and b.canonical in found.sources
    ]


def _refuse_misfit(path: Path, found: Match, options: Options) -> None:
    """Raise ConversionError for the first kind of misfit, naming what and how many."""
    variant = found.recognition.variant
    if found.wrong_shape:
        binding, spec = found.wrong_shape[0]
        raise ConversionError(
            f"{path}: {len(found.wrong_shape)} tensors have another shape than {variant} needs: {spec.name} "
            f"is {list(spec.shape)} instead of {list(binding.external_shape)}",
            hint="--variant names another variant, 'ckptkit inspect' shows the tensors",
        )
    missing = [b for b in found.missing if not (b.part == "head" and not options.head)]
    if found.lacks_bn_statistics:
        if not options.allow_missing_bn:
            raise ConversionError(
                f"{path}: no BatchNorm moving statistics in this file (one of the first uploads?); "
                "its predictions would be meaningless",
                hint="fetch the re-uploaded file, or give --allow-missing-bn to convert what is there",
            )
        missing = [b for b in missing if b.part != "bn_statistics"]
    if missing:
        raise ConversionError(
            f"{path}: {_some([b.external for b in missing])} missing for {variant}",
            hint="the file is incomplete or of another variant; see 'ckptkit verify' and --variant",
        )
    if found.recognition.structure.num_classes is None and options.head:
        raise ConversionError(
            f"{path}: no classification head in this file",
            hint="give --no-head to convert the backbone",
        )
    if found.unexpected:
        raise ConversionError(
            f"{path}: {_some(list(found.unexpected))} not known to {variant} nor to any rule",
            hint="nothing is dropped silently; see 'ckptkit inspect', or --variant if it was taken for another",
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''} ({shown})"


def _notes(reader: Reader, found: Match) -> list[str]:
    notes = list(reader.notes)
    if found.weights is not None:
        notes.append(f"the file holds raw weights and moving averages; taking {found.weights}")
    if found.lacks_bn_statistics:
        notes.append("no BatchNorm moving statistics: good for initialising training, not for predictions")
    return notes


def _metadata(
    reader: Reader,
    found: Match,
    structure: Structure,
    layout: str,
    dtype: DType | None,
    entry: Entry | None,
    source_sha256: str | None,
) -> dict[str, str]:
    """Provenance and behaviour settings that travel in the converted file."""
    recognition = found.recognition
    metadata = {key: reader.metadata[key] for key in _CARRIED if key in reader.metadata}
    metadata.update(behaviour_metadata(recognition, reader.metadata, entry))
    if entry is not None:
        metadata["entry"] = entry.id
        metadata["normalization"] = entry.normalization
        metadata["resolution"] = str(entry.test_resolution)
    if source_sha256 is not None:
        metadata["source_sha256"] = source_sha256
    if found.weights is not None:
        metadata["weights"] = found.weights
    metadata["bn_statistics"] = "missing" if found.lacks_bn_statistics else "present"
    metadata |= {
        "ckptkit_version": __version__,
        "family": recognition.family.name,
        "variant": recognition.variant,
        "layout": layout,
        "source_layout": recognition.layout,
        "pos_emb": "true" if structure.pos_emb else "false",
        "num_classes": str(structure.num_classes or 0),
    }
    if dtype is not None:
        metadata["dtype"] = dtype.name
    return metadata


def behaviour_metadata(
    recognition: Recognition, file_metadata: Mapping[str, str], entry: Entry | None
) -> dict[str, str]:
    """Behaviour settings as text: the entry's where there is one, else what the file itself says."""
    import json

    settings = {}
    for key in recognition.family.behaviour:
        value: Any = getattr(entry, key, None)
        if value is not None:
            settings[key] = json.dumps(value)
        elif key in file_metadata:
            settings[key] = file_metadata[key]
    return settings


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
    """

    path: Path
    files: tuple[Path, ...]
    checksums: Mapping[str, int]


Progress = Callable[[int], None]


def execute(
    conversion: Plan,
    reader: Reader,
    output: Path,
    *,
    force: bool = False,
    check: bool = True,
    progress: Progress | None = None,
) -> Converted:
    """Carry out a plan, tensor by tensor.

    Parameters
    ----------
    conversion : Plan
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

    Raises
    ------
    UsageError
        When the output exists and ``force`` is false.
    FormatError
        When the source turns out damaged.
    IntegrityError
        When the result read back is not what was written; it is removed then.
    StorageError
        When the disk refuses.
    """
    moves = {move.target.name: move for move in conversion.moves}
    checksums: dict[str, int] = {}
    with _writer(conversion, output, force) as writer:
        for name in writer.order:
            move = moves[name]
            reader.check(move.source)
            checksums[name] = writer.write(name, move.apply(reader.read(move.source)))
            reader.release(move.source)
            if progress:
                progress(move.target.nbytes)
        files = tuple(writer.finish())
    converted = Converted(output, files, checksums)
    if check:
        check_written(converted, conversion.specs)
    return converted


def _writer(conversion: Plan, output: Path, force: bool) -> Writer:
    from ckptkit.formats.detect import writer_for

    return writer_for(conversion.to)(output, conversion.specs, conversion.metadata, force=force)


def check_written(converted: Converted, specs: Sequence[TensorSpec]) -> None:
    """Read a result back and compare names, dtypes, shapes and every byte; remove it when it differs.

    Raises
    ------
    IntegrityError
        When anything differs from what was meant.
    """
    from ckptkit.formats.detect import open_reader

    with open_reader(converted.path) as written:
        wrong = [spec.name for spec in specs if written.specs.get(spec.name) != spec]
        if not wrong and len(written.specs) != len(specs):
            wrong = [name for name in written.specs if name not in converted.checksums]
        for spec in specs:
            if not wrong and tensor_crc32c(written.read(spec.name)) != converted.checksums[spec.name]:
                wrong = [spec.name]
            written.release(spec.name)
    if wrong:
        for file in converted.files:
            file.unlink(missing_ok=True)
        raise IntegrityError(
            f"{converted.path}: {wrong[0]} read back differs from what was written; the file was removed",
            hint="check the disk, then convert again",
        )


def tensor_crc32c(array: Array) -> int:
    """crc32c of a tensor's bytes in C order, whatever its strides."""
    import google_crc32c

    crc = 0
    for chunk in contiguous_chunks(array):
        crc = google_crc32c.extend(crc, chunk.view("uint8"))
    return crc


def load_tensors(
    reader: Reader, layout: str = CANONICAL, *, weights: Weights = "auto", variant: str | None = None
) -> dict[str, Array]:
    """Read a whole checkpoint under the names of a layout.

    Parameters
    ----------
    reader : Reader
    layout : str
        Default: the canonical (PyTorch) names.
    weights, variant
        As in `Options`.

    Returns
    -------
    dict of str to numpy.ndarray
        Contiguous arrays of their own; the reader may be closed afterwards.

    Raises
    ------
    ConversionError
        When tensors are missing, unexpected or of another shape. A missing head, or missing BatchNorm
        statistics, are accepted: what is there is loaded.
    """
    import numpy

    head = require_recognition(reader.path, reader.specs, variant=variant).structure.num_classes is not None
    conversion = plan(
        reader,
        Options("npz", layout=layout, weights=weights, variant=variant, head=head, allow_missing_bn=True),
    )
    loaded = {}
    for move in conversion.moves:
        reader.check(move.source)
        loaded[move.target.name] = numpy.array(move.apply(reader.read(move.source)), order="C")
        reader.release(move.source)
    return loaded
