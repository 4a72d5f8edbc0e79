"""Deterministic synthetic checkpoints in the published formats.

The weights are random numbers by a fixed recipe (`Family.synthetic_recipe`), so every machine makes the same
file, no download is needed, and forward passes have a healthy scale. They predict nothing.
"""

from __future__ import annotations

from pathlib import Path

from ckptkit.base.errors import UsageError
from ckptkit.families.synthetic import NOTE
from ckptkit.formats.builtin import format_of
from ckptkit.formats.names import format_to_write, without_ending
from ckptkit.models.synth.checkpoint import (
    Synthetic,
    SyntheticTensor,
    is_synthetic,
    synthetic_for,
    synthetic_stand_in,
)
from ckptkit.models.synth.tensorflow_files import write_archive, write_bundle
from ckptkit.models.synth.torch_files import write_torch

__all__ = [
    "NOTE",
    "Synthetic",
    "SyntheticTensor",
    "is_synthetic",
    "published_ending",
    "refuse_unpublished",
    "synthetic_for",
    "synthetic_stand_in",
    "write_archive",
    "write_bundle",
    "write_checkpoint",
    "write_torch",
]

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
        return write_torch(synthetic, path, force=force)
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
            hint=f"give -o {better}; 'ckptkit convert' changes the format",
        ) from error
