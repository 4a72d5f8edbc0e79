"""A set of labelled test images: what is in it, in which order, and which of them make a sample."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptkit.base.errors import FormatError, storage_error
from ckptkit.base.files import open_regular

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"})
"""File name endings of images, whatever their letter case: those of torchvision's ImageFolder."""

MOST_BYTES = 256 << 20
"""Of one image: as large as the largest that may be decoded is without compression."""


@dataclass(frozen=True)
class Sample:
    """One image, in a file of its own or in a shard."""

    name: str  # unique in its set: relative path, or shard and key
    path: Path  # the image's file, or the shard
    label: int | None = None  # class index
    offset: int = 0  # where in the shard it lies, bytes
    size: int = -1

    def read(self) -> bytes:
        """Read the image's bytes."""
        if self.size > MOST_BYTES:
            raise FormatError(self.name, f"{self.size:,} bytes, too large for a picture")
        try:
            with open_regular(self.path) as file:
                file.seek(self.offset)
                body = file.read(MOST_BYTES + 1 if self.size < 0 else self.size)
        except OSError as error:
            raise storage_error(error, self.path) from error
        if len(body) > MOST_BYTES:
            raise FormatError(self.name, f"more than {MOST_BYTES:,} bytes, too large for a picture")
        if self.size >= 0 and len(body) != self.size:
            raise FormatError(self.path, f"{self.name}: the shard ends inside the image")
        return body


@dataclass(frozen=True)
class ImageSet:
    """Images, in the order of their names."""

    samples: tuple[Sample, ...]
    what: str  # where they are from, for people
    rule: str  # how their labels were read, for people
    identity: str  # digest of every name, label, size and time of change: another one means another set
    remarks: tuple[str, ...] = ()  # what the user should know of how they were found

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def classes(self) -> int:
        """How many classes there are images of."""
        return len({sample.label for sample in self.samples})

    def limited(self, limit: int | None) -> ImageSet:
        """Keep a sample of so many images, the same ones each time; see `stratified`."""
        if limit is None or limit >= len(self):
            return self
        chosen = stratified(self.samples, limit)
        return replace(self, samples=tuple(self.samples[position] for position in chosen))


def image_set(
    samples: Iterable[Sample],
    stamps: Iterable[str],
    what: str,
    rule: str = "",
    remarks: tuple[str, ...] = (),
) -> ImageSet:
    """Make a set of images."""
    ordered = tuple(sorted(samples, key=lambda sample: sample.name))
    twice = [name for name, count in Counter(sample.name for sample in ordered).items() if count > 1]
    if twice:
        raise FormatError(what, f"{twice[0]} is there {'twice' if len(twice) == 1 else 'more than once'}")
    digest = hashlib.sha256()
    for sample in ordered:
        digest.update(
            f"{sample.name}\0{sample.label}\0{sample.offset}\0{sample.size}\n".encode(
                errors="surrogateescape"
            )
        )
    for stamp in sorted(stamps):
        digest.update(f"{stamp}\n".encode(errors="surrogateescape"))
    return ImageSet(ordered, what, rule, digest.hexdigest(), remarks)


def stamp_of(path: Path) -> str:
    """What tells a file's content from another one's without reading it."""
    try:
        status = path.stat()
    except OSError as error:
        raise storage_error(error, path) from error
    return f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}"


def stratified(samples: Sequence[Sample], limit: int) -> list[int]:
    """Positions of a sample that is spread over the classes as evenly as it can be, in rising order.

    Names are shuffled by their digests, so the choice depends on nothing but the names and labels; then
    every class gives its first image, every class its second one, and so on.

    >>> labels = [0, 0, 0, 0, 1, 1, 2]
    >>> images = [Sample(str(n), Path(str(n)), label) for n, label in enumerate(labels)]
    >>> [labels[position] for position in stratified(images, 5)]
    [0, 0, 1, 1, 2]
    """
    by_class: defaultdict[int | None, list[int]] = defaultdict(list)
    for position in sorted(range(len(samples)), key=lambda position: _shuffled(samples[position])):
        by_class[samples[position].label].append(position)
    rounds = itertools.zip_longest(*by_class.values())
    chosen = (position for one in rounds for position in one if position is not None)
    return sorted(itertools.islice(chosen, limit))


def _shuffled(sample: Sample) -> bytes:
    return hashlib.blake2b(sample.name.encode(errors="surrogateescape"), digest_size=16).digest()
