"""What a checkpoint file tells of the registry entry it is to become, without a framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptkit.families.base import Recognition
    from ckptkit.formats.base import Reader
    from ckptkit.workspace import Located

_PIECE = 1 << 20

_REGISTRY_WORDS = {"keras-h5": "keras"}
"""Layouts that are one to the registry, where the format tells them apart."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What a file tells of itself.

    Parameters
    ----------
    path : Path
    recognised : mapping of str to Any
        Fields of an entry that its tensors and its container leave no choice about.
    settings : mapping of str to Any
        Behaviour settings that its metadata states, as converted files have it.
    copies : bool
        Whether it holds two copies of the weights.
    """

    path: Path
    recognised: Mapping[str, Any]
    settings: Mapping[str, Any]
    copies: bool


def checkpoint_facts(located: Located, *, variant: str | None = None) -> CheckpointFacts:
    """Recognise a file.

    Parameters
    ----------
    located : Located
        Any supported file, folder or prefix.
    variant : str, optional
        What the user says it is of.

    Raises
    ------
    NotFoundError
        No such file, or no such variant.
    FormatError
        A damaged or unsupported file.
    ConversionError
        A file of no known family, or unlike the variant.
    """
    from ckptkit.families.base import require_recognition
    from ckptkit.families.settings import known_settings

    path = located.path
    with located.open(None) as reader:
        recognition = require_recognition(path, reader.specs, variant=variant)
        family = recognition.family
        recognised: dict[str, Any] = {
            "family": family.name,
            "variant": recognition.variant,
            "layout": _REGISTRY_WORDS.get(recognition.layout, recognition.layout),
            "format": reader.format,
        }
        if family.has_pos_emb:
            recognised["pos_emb"] = recognition.structure.pos_emb
        settings = known_settings(family, metadata=reader.metadata, path=path)
        return CheckpointFacts(path, recognised, settings, _has_two_copies(reader, recognition))


def _has_two_copies(reader: Reader, recognition: Recognition) -> bool:
    if reader.weights is not None:  # a PyTorch file with a state dict for each
        return True
    twin = recognition.table.layout.second_copy
    return twin is not None and any(twin.of(name) in reader.specs for name in recognition.table.by_external)


def observed_fields(
    path: Path, url: str, progress: Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
) -> dict[str, Any]:
    """Return sha256, size and their provenance of a local file that is to be the one at a URL.

    Parameters
    ----------
    path : Path
        The file as published.
    url : str
        Where it is published.
    progress : callable
        Opens a display for (description, total bytes).

    Raises
    ------
    UsageError
        When it is no single file.
    StorageError
        When it cannot be read.
    """
    import hashlib
    from datetime import datetime, timezone

    from ckptkit.base.errors import UsageError, storage_error

    if not path.is_file():
        raise UsageError(
            f"{path} is not one file, and only the file as published has a checksum to pin",
            hint="give the file that lies at the URL, such as the .tar.gz, or leave --pin out",
        )
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream, progress(f"hashing {path}", path.stat().st_size) as advance:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                size += len(piece)
                advance(len(piece))
    except OSError as error:
        raise storage_error(error, path) from error
    return {
        "sha256": digest.hexdigest(),
        "size": size,
        "hash_provenance": {
            "observed_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "url": url,
            "note": f"observed on a local file, {path.name}, which was not fetched from there",
        },
    }
