"""Synthetic checkpoints as TensorFlow's published ones are: a bundle, packed into a ``.tar.gz``."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ckptkit.base.files import StagedFile
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.models.synth.checkpoint import Synthetic

_STEP = TensorSpec("global_step", DTYPES["int64"], ())


def write_bundle(synthetic: Synthetic, prefix: Path, *, force: bool = False) -> list[Path]:
    """Write a synthetic TensorFlow checkpoint, with a ``global_step`` of 0, as the published code would."""
    import numpy

    from ckptkit.formats.tf_bundle import TfBundleWriter

    tensors = {tensor.spec.name: tensor.make for tensor in synthetic.tensors()}
    tensors[_STEP.name] = lambda: numpy.zeros((), numpy.int64)
    specs = [tensor.spec for tensor in synthetic.tensors()]
    with TfBundleWriter(prefix, [*specs, _STEP], {}, force=force) as writer:
        for name in writer.order:
            writer.write(name, tensors[name]())
        return list(writer.finish())


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
