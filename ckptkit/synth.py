"""Deterministic synthetic checkpoints in the published formats.

The weights are random numbers by a fixed recipe (below), so every machine makes the same file, no download
is needed, and forward passes have a healthy scale. They predict nothing.

Recipe for a tensor of published name *n* and shape *s*, all in float32::

    z = Generator(Philox(key=crc32(n))).standard_normal(s)

    BatchNorm/LayerNorm scale         1 + 0.1 z        moving variance           exp(0.2 z)
    shift, moving mean                0.1 z            bias, anything of rank ≤ 1  0.05 z
    relative position table           0.5 z            convolution kernel        z / √(kh·kw·in)
    depthwise kernel                  z / √(kh·kw)     attention q, k, v         z / √C
    attention o                       z / √(heads·32)

A ``raw`` twin takes *n* + ``#raw`` for its key.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.errors import UsageError
from ckptkit.families.base import Structure, families, family_of_variant, get_family
from ckptkit.formats.staging import StagedFile
from ckptkit.tensors import DTYPES, Array, TensorSpec

if TYPE_CHECKING:
    from ckptkit.registry import Entry, Registry

EMA_SUFFIX = "/ExponentialMovingAverage"
NOTE = "synthetic weights: random numbers by a fixed recipe, trained on nothing"
_STEP = TensorSpec("global_step", DTYPES["int64"], ())


def synthetic_tensor(name: str, shape: tuple[int, ...], *, key: str | None = None) -> Array:
    """One tensor by the recipe.

    Parameters
    ----------
    name : str
        Published (deeplab2) name; decides the scale.
    shape : tuple of int
        Published shape.
    key : str, optional
        What seeds the generator, default the name.

    Returns
    -------
    numpy.ndarray
        float32.

    Examples
    --------
    >>> synthetic_tensor("moat/stem/norm_0/gamma", (32,))[:2].round(4).tolist()
    [1.1377999782562256, 1.0569000244140625]
    """
    import numpy

    seed = zlib.crc32((key or name).encode())
    generator = numpy.random.Generator(numpy.random.Philox(key=seed))
    z: Array = generator.standard_normal(shape, dtype=numpy.float32)
    kind = name.rsplit("/", 1)[-1]
    if kind == "gamma":
        return 1 + numpy.float32(0.1) * z
    if kind in ("beta", "moving_mean"):
        return numpy.float32(0.1) * z
    if kind == "moving_variance":
        return numpy.exp(numpy.float32(0.2) * z)
    if kind == "bias" or len(shape) <= 1:
        return numpy.float32(0.05) * z
    if kind == "relative_position_embedding":
        return numpy.float32(0.5) * z
    return z / numpy.float32(math.sqrt(_fan_in(name, shape)))


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    kind = name.rsplit("/", 1)[-1]
    if kind == "depthwise_kernel":
        return math.prod(shape[:2])
    if name.endswith("/o/weight"):
        return math.prod(shape[:2])
    if kind == "weight":
        return shape[0]
    return math.prod(shape[:-1])


@dataclass(frozen=True)
class Synthetic:
    """Which synthetic checkpoint.

    Parameters
    ----------
    variant : str
        A MOAT variant.
    pos_emb : bool
        With relative position tables.
    twins : bool
        Plain names hold raw weights and each parameter has a moving average beside it, which then has the
        recipe's values; without twins the plain names have them.
    bn_statistics : bool
        False leaves the BatchNorm moving statistics out, as the first uploads did.
    """

    variant: str
    pos_emb: bool = True
    twins: bool = False
    bn_statistics: bool = True

    def contents(self) -> dict[str, Callable[[], Array]]:
        """Name in the file → function that makes the tensor, in the architecture's order."""
        family = family_of_variant(self.variant)
        layout = family.default_layout["tf"]
        makers: dict[str, Callable[[], Array]] = {}
        for row in family.table(layout, self.variant, Structure(self.pos_emb)).bindings:
            if row.part == "bn_statistics" and not self.bn_statistics:
                continue
            name, shape = row.external, row.external_shape
            if self.twins and row.trainable:
                makers[name] = partial(synthetic_tensor, name, shape, key=f"{name}#raw")
                makers[name + EMA_SUFFIX] = partial(synthetic_tensor, name, shape)
            else:
                makers[name] = partial(synthetic_tensor, name, shape)
        return makers

    def specs(self) -> list[TensorSpec]:
        """Specs of everything in the file."""
        family = family_of_variant(self.variant)
        rows = family.table(family.default_layout["tf"], self.variant, Structure(self.pos_emb)).by_external
        float32 = DTYPES["float32"]
        return [
            TensorSpec(name, float32, rows[name.removesuffix(EMA_SUFFIX)].external_shape)
            for name in self.contents()
        ]


def write_bundle(synthetic: Synthetic, prefix: Path, *, force: bool = False) -> list[Path]:
    """Write a synthetic TensorFlow checkpoint, with a ``global_step`` of 0, as the published code would.

    Parameters
    ----------
    synthetic : Synthetic
    prefix : Path
        Of the files to write.
    force : bool
        Replace existing files.

    Returns
    -------
    list of Path
        The files written.
    """
    import numpy

    from ckptkit.formats.tf_bundle import TfBundleWriter

    makers = synthetic.contents()
    makers[_STEP.name] = lambda: numpy.zeros((), numpy.int64)
    with TfBundleWriter(prefix, [*synthetic.specs(), _STEP], {}, force=force) as writer:
        for name in writer.order:
            writer.write(name, makers[name]())
        return list(writer.finish())


def write_archive(synthetic: Synthetic, path: Path, *, force: bool = False) -> Path:
    """Write a synthetic checkpoint as the ``.tar.gz`` that is published: a folder with the files in it.

    The same arguments give the same bytes: times, owners and order in the archive are fixed.

    Parameters
    ----------
    synthetic : Synthetic
    path : Path
        The archive to write.
    force : bool
        Replace an existing file.

    Returns
    -------
    Path
        The archive.
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


def synthetic_stand_in(name: str, registry: Registry) -> tuple[Entry | None, Synthetic]:
    """What stands in for a variant or an entry of that name.

    Raises
    ------
    NotFoundError
        When there is neither.
    UsageError
        When the entry's family has no recipe yet.
    """
    if any(name in get_family(family).variants for family in families()):
        return None, Synthetic(name)
    entry = registry[name]
    return entry, synthetic_for(entry)


def synthetic_for(entry: Entry) -> Synthetic:
    """The synthetic stand-in of a registry entry.

    Raises
    ------
    UsageError
        When the entry's family has no recipe yet.
    """
    if entry.family != "moat":
        raise UsageError(
            f"no synthetic checkpoint for {entry.id} yet",
            hint="MOAT's entries have one: ckptkit list --family moat",
        )
    return Synthetic(entry.variant, pos_emb=bool(entry.pos_emb))
