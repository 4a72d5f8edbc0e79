"""Deterministic synthetic checkpoints in the published formats.

The weights are random numbers by a fixed recipe (`recipes`), so every machine makes the same file, no
download is needed, and forward passes have a healthy scale. They predict nothing.
"""

from __future__ import annotations

from pathlib import Path

from ckptkit.errors import UsageError
from ckptkit.synth.checkpoint import Synthetic, SyntheticTensor, synthetic_for, synthetic_stand_in
from ckptkit.synth.recipes import moganet_tensor, synthetic_tensor
from ckptkit.synth.tensorflow_files import write_archive, write_bundle
from ckptkit.synth.torch_files import NOTE, write_torch

__all__ = [
    "NOTE",
    "Synthetic",
    "SyntheticTensor",
    "moganet_tensor",
    "published_ending",
    "synthetic_for",
    "synthetic_stand_in",
    "synthetic_tensor",
    "write_archive",
    "write_bundle",
    "write_checkpoint",
    "write_torch",
]

_ENDINGS = {"deeplab2": ".tar.gz", "openmixup": ".pth", "torch": ".pth.tar"}
_ARCHIVES = (".tar.gz", ".tgz")


def published_ending(synthetic: Synthetic) -> str:
    """How the names of such files end where they are published.

    Examples
    --------
    >>> published_ending(Synthetic("moganet-xt", layout="torch"))
    '.pth.tar'
    """
    return _ENDINGS[synthetic.table.layout.name]


def write_checkpoint(synthetic: Synthetic, path: Path, *, force: bool = False) -> Path:
    """Write a synthetic checkpoint in the format its family is published in.

    Parameters
    ----------
    synthetic : Synthetic
    path : Path
        For TensorFlow's families a ``.tar.gz`` as published, or the prefix of a bare checkpoint; for
        PyTorch's a file.
    force : bool
        Replace existing files.

    Returns
    -------
    Path
        What to open: the file, or the prefix.

    Raises
    ------
    UsageError
        When a PyTorch checkpoint is to be called like an archive.
    """
    is_archive = path.name.endswith(_ARCHIVES)
    if synthetic.table.layout.name != "deeplab2":
        if is_archive:
            raise UsageError(
                f"{path}: {synthetic.variant} is published as a PyTorch file, not as an archive",
                hint=f"call it {path.name.split('.', 1)[0]}{published_ending(synthetic)}",
            )
        return write_torch(synthetic, path, force=force)
    if is_archive:
        return write_archive(synthetic, path, force=force)
    write_bundle(synthetic, path, force=force)
    return path
