"""The plan of a conversion: every tensor's move, decided before a byte is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import __version__
from ckptkit.base.errors import ConversionError, UsageError, command, listed
from ckptkit.base.tensors import DTYPES, DType, TensorSpec
from ckptkit.convert.as_is import in_words, refuse_left_out
from ckptkit.convert.moves import Move, TensorPlan
from ckptkit.convert.options import AS_IS, Options, check_target
from ckptkit.families.base import Recognition, Structure, require_recognition
from ckptkit.families.binding import FileFacts, Ignored, Match, match
from ckptkit.families.leftovers import whole_model
from ckptkit.families.settings import known_settings, missing_settings, set_option
from ckptkit.formats.base import Reader
from ckptkit.formats.builtin import format_of
from ckptkit.rules.language import Binding, Ignore, Table

if TYPE_CHECKING:
    from ckptkit.registry import Entry

_CARRIED = ("entry", "weights", "normalization", "resolution", "position_tables")
"""Metadata that stays true of a converted file's conversions."""

_CALIBRATION = ("bn_statistics", "bn_images", "bn_images_sha256", "bn_method", "bn_preprocessing")
"""Metadata of a file whose BatchNorm statistics were recomputed, which stay so in its conversions."""

_NO_HEAD = Ignore("head", "", "left out by --no-head")


@dataclass(frozen=True)
class Plan(TensorPlan):
    """The plan for a checkpoint of a family known here."""

    recognition: Recognition = field(kw_only=True)

    @property
    def way(self) -> str:
        """From what to what, for people."""
        return f"{self.source_format}/{self.recognition.layout} → {self.to}/{self.layout}"

    @property
    def subject(self) -> str:
        """The variant."""
        return self.recognition.variant


def plan(
    reader: Reader,
    options: Options,
    *,
    entry: Entry | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Plan:
    """Decide a conversion.

    Parameters
    ----------
    reader : Reader
        The open source.
    options : Options
    entry : Entry, optional
        The registry entry the source belongs to; gives behaviour settings and provenance.
    provenance : mapping of str to str, optional
        What identifies the source, for the metadata: ``source_sha256`` for one.

    Raises
    ------
    UsageError
        When the options make no sense for this file.
    ConversionError
        When tensors are missing, unexpected or of another shape.
    """
    check_target(options)
    recognition = require_recognition(
        reader.path, reader.specs, variant=options.variant or (entry.variant if entry else None)
    )
    known = FileFacts.of(reader, entry)
    found = match(reader.specs, recognition, weights=options.weights, known=known, head=options.head)
    structure = (
        replace(recognition.structure, num_classes=None) if not options.head else recognition.structure
    )
    settings = known_settings(
        recognition.family,
        told=options.settings,
        entry=entry,
        metadata=reader.metadata,
        path=reader.path,
    )
    layout = _target_layout(options, recognition)
    structure = _resized(reader, structure, settings, options, recognition)
    target_table = recognition.family.table(layout, recognition.variant, structure)
    _refuse_other_pos_emb(reader.path, recognition, entry)
    refuse_left_out(reader, found.unread)
    _refuse_misfit(reader, found, options)
    _refuse_opaque(reader, found)
    dtype = DTYPES[options.dtype] if options.dtype else None
    moves = tuple(
        _move(reader, found, binding, dtype)
        for binding in target_table.bindings
        if binding.canonical in found.sources
    )
    dropped = _dropped(found, target_table)
    return Plan(
        source=reader.path,
        source_format=reader.format,
        recognition=recognition,
        to=options.to,
        layout=layout,
        weights=found.weights,
        moves=moves,
        ignored=(*dropped, *found.ignored),
        metadata={
            **_metadata(reader, found, layout, structure, entry),
            **_resizing_in_words(options, moves),
            **{key: json.dumps(value) for key, value in settings.items()},
            **({"weights": copy} if (copy := found.weights or known.available_copy) else {}),
            **(provenance or {}),
        },
        notes=(*_notes(reader, found, settings), *_layout_note(layout, recognition, options)),
        max_shard_size=options.max_shard_size,
        also=reader.also,
    )


def _refuse_opaque(reader: Reader, found: Match) -> None:
    """Raise ConversionError when tensors of the architecture are of a type that nothing computes with."""
    opaque = {
        name: reader.specs[name].dtype.name
        for name in found.sources.values()
        if reader.specs[name].dtype.is_opaque
    }
    if opaque:
        raise ConversionError(
            f"{reader.path}: element types that {found.recognition.variant} cannot have: {in_words(opaque)}",
            hint=f"--layout {AS_IS} carries their bytes to a format that has the type",
        )


def _target_layout(options: Options, recognition: Recognition) -> str:
    """Layout to write: as asked, else the usual one; a backbone's own names where the head is left out."""
    family = recognition.family
    layout = options.layout or family.layout_for(options.to)
    headless = family.layouts[layout].headless if layout in family.layouts else None
    return headless if headless and not options.head else layout


def _resized(
    reader: Reader,
    structure: Structure,
    settings: Mapping[str, Any],
    options: Options,
    recognition: Recognition,
) -> Structure:
    """The structure of the target: with tables of other sizes where a resolution is asked for.

    Raises
    ------
    UsageError
        When there are no tables, or they were resized already: twice is not what the model does.
    """
    if options.resolution is None:
        return structure
    sizes = recognition.family.table_sizes_at(options.resolution, settings)
    if not structure.pos_emb:
        raise UsageError(
            f"{reader.path} has no position tables to resize", hint="it fits every resolution as it is"
        )
    if structure.table_sizes not in (None, sizes):
        raise UsageError(
            f"{reader.path}: its position tables were resized already"
            + (f" ({said})" if (said := reader.metadata.get("position_tables")) else ""),
            hint="resize those of the original file",
        )
    return replace(structure, table_sizes=sizes)


def _resizing_in_words(options: Options, moves: Sequence[Move]) -> dict[str, str]:
    """What the metadata says of ``--resolution``."""
    if options.resolution is None:
        return {}
    height, width = options.resolution
    said = {"resolution": str(height) if height == width else f"{height}x{width}"}
    sizes = dict.fromkeys("x".join(map(str, m.outward.canonical_shape[-2:])) for m in moves if m.resize)
    if sizes:
        said["position_tables"] = f"resized to {', '.join(sizes)} for an input of {height}x{width}"
    return said


def _move(reader: Reader, found: Match, outward: Binding, dtype: DType | None) -> Move:
    source = found.sources[outward.canonical]
    spec = reader.specs[source]
    target_dtype = dtype if dtype is not None and spec.dtype.is_float else spec.dtype
    inward = found.recognition.table.by_canonical[outward.canonical]
    resized = inward.canonical_shape != outward.canonical_shape  # of position tables only
    return Move(
        source,
        TensorSpec(outward.external, target_dtype, outward.external_shape),
        inward,
        outward,
        resize=found.recognition.family.resized_table if resized else None,
    )


def _dropped(found: Match, target: Table) -> list[Ignored]:
    """Tensors of the source that have no place in the target: a head, or what its layout has no names for."""
    dropped = []
    for binding in found.recognition.table.bindings:
        if binding.canonical in found.sources and binding.canonical not in target.by_canonical:
            rule = target.layout.lacks.get(binding.part, _NO_HEAD)
            dropped.append(Ignored(found.sources[binding.canonical], rule.name, rule.reason))
    return dropped


def _refuse_other_pos_emb(path: Path, recognition: Recognition, entry: Entry | None) -> None:
    """Raise ConversionError when position tables are there that the entry has not, or the other way round."""
    has = recognition.structure.pos_emb
    if entry is not None and entry.pos_emb not in (None, has):
        raise ConversionError(
            f"{path}: {'has' if has else 'lacks'} the position embedding that {entry.id} "
            f"{'lacks' if has else 'has'}",
            hint=f"is it the file of another entry? see 'ckptkit show {entry.id}'",
        )


def _refuse_misfit(reader: Reader, found: Match, options: Options) -> None:
    """Raise ConversionError for the first kind of misfit, naming what and how many."""
    path, variant = reader.path, found.recognition.variant
    if found.wrong_shape:
        binding, spec = found.wrong_shape[0]
        raise ConversionError(
            f"{path}: {len(found.wrong_shape)} tensors have another shape than {variant} needs: {spec.name} "
            f"is {list(spec.shape)} instead of {list(binding.external_shape)}",
            hint=f"name another variant with --variant, or look at the tensors. {command('inspect', path)}",
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
            hint=f"the file is incomplete, or of another variant: see --variant. {command('verify', path)}",
        )
    if found.recognition.structure.num_classes is None and options.head:
        what = "no classification head in this file"
        if found.around:
            whole = whole_model(one.reason for one in found.ignored)
            what = f"a {whole}'s checkpoint: backbone {variant} with {', '.join(found.around)}"
        raise ConversionError(f"{path}: {what}", hint="give --no-head to convert the backbone")
    if second := [name for name in found.unexpected if name in reader.namesakes]:
        raise ConversionError(
            f"{path}: {_some(second)} of a name that another one has too, with other values: "
            f"{reader.namesakes[second[0]]}. Nothing tells which one is meant",
            hint=f"--layout {AS_IS} carries both, --rules FILE can take one",
        )
    if found.unexpected:
        raise ConversionError(
            f"{path}: {_some(list(found.unexpected))} not known to {variant} nor to any rule",
            hint=f"name another variant with --variant, or look at the tensors. {command('inspect', path)}",
        )


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''} ({listed(names, 3)})"


def _layout_note(layout: str, recognition: Recognition, options: Options) -> list[str]:
    """Say that the target's own framework cannot load a file in this layout."""
    target, usual = format_of(options.to), recognition.family.layout_for(options.to)
    if not target.only_usual_layout or layout == usual:
        return []
    return [f"{target.title} cannot load a file in layout {layout}; leave --layout out for its own, {usual}"]


def _notes(reader: Reader, found: Match, settings: Mapping[str, Any]) -> list[str]:
    notes = list(reader.notes)
    if found.weights is not None:
        notes.append(f"the file holds raw weights and moving averages; taking {found.weights}")
    twin = found.recognition.table.layout.second_copy
    if found.weights == "raw" and twin is not None and twin.holds == "raw":
        notes.append("its BatchNorm statistics are those of the moving averages, there are no others")
    if found.lacks_bn_statistics:
        notes.append("no BatchNorm moving statistics: good for initialising training, not for predictions")
    notes += [
        f"{key} is not known, so the result does not say it and models built from it must be told "
        f"({set_option(found.recognition.family, key)} writes it in)"
        for key in missing_settings(found.recognition.family, settings)
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
