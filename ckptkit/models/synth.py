"""Deterministic synthetic checkpoints in the published formats.

The weights are random numbers by a fixed recipe (`Family.synthetic_recipe`), so every machine makes the same
file, no download is needed, and forward passes have a healthy scale. They predict nothing.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import UsageError, choose_from, command
from ckptkit.base.files import StagedFile
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.families.base import Family, PublishedFile, Structure, family_of_variant, get_family, is_variant
from ckptkit.families.recognition import Recognition
from ckptkit.families.synthetic import Make, canonical_tensor, is_counter
from ckptkit.formats.base import Reader, Writer
from ckptkit.formats.builtin import format_of
from ckptkit.formats.names import format_to_write, without_ending
from ckptkit.formats.torch_writer import TorchWriter
from ckptkit.registry.schema import Entry
from ckptkit.rules.language import Shape, Table
from ckptkit.workspace import Located

if TYPE_CHECKING:
    from ckptkit.registry.query import Registry
    from ckptkit.workspace import Named, Workspace

STATE_DICT, STATE_DICT_EMA = "state_dict", "state_dict_ema"


@dataclass(frozen=True)
class SyntheticTensor:
    """One tensor of a synthetic checkpoint."""

    spec: TensorSpec  # name, type and shape in the file
    make: Make  # gives its values
    state_dict: str = STATE_DICT  # which state dict of a PyTorch file it is in


@dataclass(frozen=True)
class Synthetic:
    """Which synthetic checkpoint."""

    variant: str
    pos_emb: bool = True  # with relative position tables
    twins: bool = False  # both copies of the weights, where the published code puts them
    # False leaves the BatchNorm moving statistics out, as MOAT's first uploads did
    bn_statistics: bool = True
    layout: str | None = None  # published layout, default the family's first: ``deeplab2`` for MOAT
    num_classes: int | None = 1000  # outputs of the head; None: without it
    around: Mapping[str, Shape] = field(default_factory=dict, hash=False)  # what is around a backbone

    @cached_property
    def family(self) -> Family:
        """The variant's family."""
        return family_of_variant(self.variant)

    @property
    def published_file(self) -> PublishedFile:
        """The kind of file that it is published in."""
        return self.family.published_files[self.table.layout.name]

    @cached_property
    def table(self) -> Table:
        """The published layout's tensors."""
        layout = self.layout or next(iter(self.family.published_files))
        structure = Structure(self.pos_emb and self.family.has_pos_emb, self.num_classes)
        return self.family.table(layout, self.variant, structure)

    def tensors(self) -> Iterator[SyntheticTensor]:
        """Everything in the file, in its order."""
        yield from self._model()
        norms = {name.rpartition(".")[0] for name in self.around if name.endswith(".running_mean")}
        for name, shape in self.around.items():
            make = partial(canonical_tensor, name, shape, is_norm=name.rpartition(".")[0] in norms)
            dtype = DTYPES["int64" if is_counter(name) else "float32"]
            yield SyntheticTensor(TensorSpec(name, dtype, shape), make)

    def _model(self) -> Iterator[SyntheticTensor]:
        recipe = self.family.synthetic_recipe(self.table, raw=False)
        if not self.twins:
            yield from self._copy(recipe)
            return
        raw = self.family.synthetic_recipe(self.table, raw=True)
        twin = self.table.layout.second_copy
        if twin is None:  # the timm style keeps the copies apart, statistics and all
            yield from self._copy(raw)
            yield from self._copy(recipe, STATE_DICT_EMA)
            return
        plain, second = (raw, recipe) if twin.holds == "ema" else (recipe, raw)
        trainable = {row.external for row in self.table.bindings if row.trainable}
        for one in self._copy(recipe):
            name = one.spec.name
            if name not in trainable:
                yield one
                continue
            yield SyntheticTensor(one.spec, plain[name])
            yield SyntheticTensor(TensorSpec(twin.of(name), one.spec.dtype, one.spec.shape), second[name])

    def _copy(self, recipe: Mapping[str, Make], state_dict: str = STATE_DICT) -> Iterator[SyntheticTensor]:
        for row in self.table.bindings:
            if row.part == "bn_statistics" and not self.bn_statistics:
                continue
            dtype = DTYPES["int64" if row.part == "counter" else "float32"]
            spec = TensorSpec(row.external, dtype, row.external_shape)
            yield SyntheticTensor(spec, recipe[row.external], state_dict)


_ROUNDING = 2.0**-7
"""Relative difference that bfloat16 leaves between a number and itself."""


def is_synthetic(reader: Reader, found: Recognition) -> bool:
    """Whether the first bias of a recognised file has the values of the recipe.

    A synthetic file does not tell: it is shaped as the published ones are, and `write_checkpoint` makes them
    for mirrors, too. Whoever shows its predictions must say so all the same.
    """
    import numpy

    held = next(row for row in found.table.bindings if row.canonical.endswith(".bias") and row.part == "body")
    name = next((one for one in (held.external, *held.aliases) if one in reader.specs), None)
    if name is None or reader.specs[name].shape != held.external_shape:
        return False
    values = numpy.asarray(reader.read(name), dtype=numpy.float32)
    family, likely = found.family, []
    for layout in family.published_files:  # a recipe may go by the published names
        table = Synthetic(found.variant, layout=layout).table
        external = table.by_canonical[held.canonical].external
        likely += [family.synthetic_recipe(table, raw=raw)[external] for raw in (False, True)]
    return any(numpy.allclose(values, make(), rtol=_ROUNDING, atol=0) for make in likely)


def synthetic_stand_in(name: Named, registry: Registry) -> tuple[Entry | None, Synthetic]:
    """The synthetic checkpoint for a variant or an entry of that name, or for an entry itself."""
    if isinstance(name, Entry):
        return name, synthetic_for(name)
    name = str(name)
    if is_variant(name):
        return None, Synthetic(name)
    entry = registry[name]
    return entry, synthetic_for(entry)


def synthetic_as(
    name: Named, registry: Registry, *, layout: str | None, pos_emb: bool, ema: bool, bn: bool
) -> Synthetic:
    """The stand-in of that name, as it was asked for."""
    _, chosen = synthetic_stand_in(name, registry)
    family = chosen.family
    if layout is not None and layout not in family.published_files:
        raise UsageError(
            f"{family.name} is not published in layout {layout!r}", hint=choose_from(family.published_files)
        )
    if not pos_emb and not family.has_pos_emb:
        raise UsageError(f"family {family.name} has no position embedding", hint="leave --no-pos-emb out")
    return replace(
        chosen,
        layout=layout or chosen.layout,
        pos_emb=chosen.pos_emb and pos_emb,
        twins=ema,
        bn_statistics=bn,
    )


@contextmanager
def synthetic_checkpoint(synthetic: Synthetic, entry: Entry | None = None) -> Iterator[Located]:
    """A synthetic checkpoint, of the entry it stands in for, in a temporary folder while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="ckptkit-synthetic-") as folder:
        one_file = format_of(synthetic.published_file.format).one_file
        name = f"model{published_ending(synthetic)}" if one_file else "model.ckpt"
        yield Located(write_checkpoint(synthetic, Path(folder) / name), entry)


@contextmanager
def named_checkpoint(
    what: Named,
    workspace: Workspace,
    *,
    synthetic: bool = False,
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
) -> Iterator[tuple[Located, str]]:
    """Find a checkpoint, fetching an entry that is not cached, or make a synthetic one; and its name."""
    if not synthetic:
        located = workspace.locate(what, state_dict=state_dict, strip_prefix=strip_prefix)
        yield located, located.name
        return
    if state_dict is not None or strip_prefix:
        raise UsageError("synthetic weights have one state dict, and no prefix", hint="leave --synthetic out")
    entry, stand_in = synthetic_stand_in(what, workspace.registry)
    with synthetic_checkpoint(stand_in, entry) as located:
        yield located, entry.id if entry else str(what)


def synthetic_for(entry: Entry) -> Synthetic:
    """The synthetic stand-in of a registry entry."""
    family = None if entry.serves == "container" else get_family(entry.family)
    around = family.parts_around(entry) if family and entry.serves == "backbone" else {}
    if family is None or (entry.serves == "backbone" and not around):
        part = "backbone" if entry.serves == "backbone" else "container"
        raise UsageError(
            f"{entry.id}: no synthetic file can stand in for it, because only its {part} is known here",
            hint=command("synth", entry.variant) if is_variant(entry.variant) else None,
        )
    layout = entry.layout if entry.layout in family.published_files else None
    classes = None if around else entry.num_classes or Structure().num_classes
    return Synthetic(
        entry.variant, pos_emb=bool(entry.pos_emb), layout=layout, num_classes=classes, around=around
    )


_STEP = TensorSpec("global_step", DTYPES["int64"], ())


def _write(writer: Writer, makers: Mapping[str, Make]) -> list[Path]:
    with writer:
        for name in writer.order:
            writer.write(name, makers[name]())
        return list(writer.finish())


def write_bundle(synthetic: Synthetic, prefix: Path, *, force: bool = False) -> list[Path]:
    """Write a synthetic TensorFlow checkpoint, with a ``global_step`` of 0, as the published code would."""
    import numpy

    makers = {tensor.spec.name: tensor.make for tensor in synthetic.tensors()}
    specs = [*(tensor.spec for tensor in synthetic.tensors()), _STEP]
    makers[_STEP.name] = lambda: numpy.zeros((), numpy.int64)
    return _write(format_of("tf").writer(prefix, specs, {}, force=force), makers)


def write_archive(synthetic: Synthetic, path: Path, *, force: bool = False) -> Path:
    """Write a synthetic checkpoint as the ``.tar.gz`` that is published: a folder with the files in it.

    The same arguments give the same bytes: times, owners and order in the archive are fixed.
    """
    folder = path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
    with (
        tempfile.TemporaryDirectory(prefix="ckptkit-synth-") as scratch,
        StagedFile(path, force=force) as staged,
    ):
        prefix = Path(scratch) / "model.ckpt"
        files = sorted(write_bundle(synthetic, prefix))
        state = Path(scratch) / "checkpoint"
        state.write_text('model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n')
        with (
            gzip.GzipFile(
                filename="", mode="wb", fileobj=_Appending(staged), compresslevel=1, mtime=0
            ) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for file in [*files, state]:
                member = tarfile.TarInfo(f"{folder}/{file.name}")
                member.size = file.stat().st_size
                with file.open("rb") as content:
                    archive.addfile(member, content)
        return staged.commit()


class _Appending(io.RawIOBase):
    """A staged file as the sequential stream that gzip writes to."""

    def __init__(self, staged: StagedFile) -> None:
        self._staged = staged

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._staged.append(data)
        return memoryview(data).nbytes


def write_file(synthetic: Synthetic, path: Path, *, force: bool = False) -> Path:
    """Write a synthetic checkpoint of one file; a PyTorch file shaped as the release of its layout."""
    tensors = list(synthetic.tensors())
    published = synthetic.published_file
    if published.format != "torch":
        writer = format_of(published.format).writer(path, [one.spec for one in tensors], {}, force=force)
        return _write(writer, {one.spec.name: one.make for one in tensors})[0]
    # Two state dicts may hold tensors of one name; in the writer's list each has a name of its own.
    specs = [replace(one.spec, name=f"{one.state_dict}/{one.spec.name}") for one in tensors]
    dicts: dict[str, dict[str, TensorSpec]] = {STATE_DICT: {}}
    for spec, one in zip(specs, tensors, strict=True):
        dicts.setdefault(one.state_dict, {})[one.spec.name] = spec
    tree = published.tree(synthetic.variant, dicts)
    makers = {spec.name: one.make for spec, one in zip(specs, tensors, strict=True)}
    return _write(TorchWriter(path, specs, {}, force=force, tree=tree), makers)[0]


_ARCHIVES = (".tar.gz", ".tgz")


def published_ending(synthetic: Synthetic) -> str:
    """How the names of such files end where they are published.

    >>> published_ending(Synthetic("moganet-xt", layout="torch"))
    '.pth.tar'
    """
    return synthetic.published_file.ending


def write_checkpoint(synthetic: Synthetic, path: Path, *, force: bool = False) -> Path:
    """Write a synthetic checkpoint in the format its family is published in."""
    refuse_unpublished(synthetic, path)
    if format_of(synthetic.published_file.format).one_file:
        return write_file(synthetic, path, force=force)
    if path.name.lower().endswith(_ARCHIVES):
        return write_archive(synthetic, path, force=force)
    write_bundle(synthetic, path, force=force)
    return path


def refuse_unpublished(synthetic: Synthetic, output: str | Path) -> None:
    """Raise UsageError for a name that says another format than the one its family is published in."""
    published = format_of(synthetic.published_file.format)
    folder, slash, name = str(output).rpartition("/")
    if not published.one_file and name.lower().endswith(_ARCHIVES):
        return
    try:
        format_to_write(published.name, name)
    except UsageError as error:
        ending = published_ending(synthetic) if published.one_file else published.endings[0]
        better = f"{folder}{slash}{without_ending(name)}{ending}"
        raise UsageError(
            f"{output}: synth writes {synthetic.variant} as it is published, "
            f"a {published.title} {'file' if published.one_file else 'checkpoint'}",
            hint=f"give -o {better} and convert that. {command('convert', better, '-o', output)}",
        ) from error
