"""Labelled test images, from folders or WebDataset shards, in a fixed order and decoded ahead of the model.

A shard is a tar file whose members share a name a sample: a member's path up to the first dot of its last
part is the sample's key, what follows that dot says what it is (https://github.com/webdataset/webdataset,
"The WebDataset Format"). Of each sample the image (``jpg``, ``png``, ``webp``, …) and its class (``cls``: a
decimal index; or ``json``: an object with ``label``) are used. An index is made once from header to
header; images are then read by their offsets, in any order and by several threads, and nothing is unpacked.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy

from ckptkit.base.errors import FormatError, NotFoundError, UsageError, listed
from ckptkit.base.files import open_named, open_regular, storage_error
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.formats.tar import members_in_place
from ckptkit.models.images.classes import imagenet_classes
from ckptkit.models.images.decoding import opened_image
from ckptkit.models.images.gathering import entries_of, files_below
from ckptkit.models.images.preprocessing import Preprocessing

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
    offset: int = 0  # in the shard, bytes
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
        """Keep a sample of this many images, the same ones each time; see `stratified`."""
        if limit is None or limit >= len(self):
            return self
        chosen = stratified(self.samples, limit)
        return replace(self, samples=tuple(self.samples[position] for position in chosen))


def image_set(samples: Iterable[Sample], what: str, rule: str = "", remarks: Sequence[str] = ()) -> ImageSet:
    """Make a set of images, known by their names and labels and by what their files were like."""
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
    for stamp in sorted(map(stamp_of, {sample.path for sample in ordered})):
        digest.update(f"{stamp}\n".encode(errors="surrogateescape"))
    return ImageSet(ordered, what, rule, digest.hexdigest(), tuple(remarks))


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


ClassOrder = Literal["text", "number"]

_LINE_BYTES = 4096
_NAMED = 3


def class_folders(folder: Path, num_classes: int, order: ClassOrder | None = None) -> ImageSet:
    """Read a folder that has one folder for each class.

    Their order is that of the names: as text 10 comes before 2 (torchvision's ImageFolder), as a number after
    it (timm). Without ``order`` it is that of the text, with a remark where the other one differs.
    """
    names = [entry.name for entry in entries_of(folder) if entry.is_dir()]
    labels, rule, remarks = class_labels(names, num_classes, folder, order)
    samples = [
        Sample(path.relative_to(folder).as_posix(), path, labels[name])
        for name in names
        for path in images_below(folder / name, remarks.append, [folder])
    ]
    if not samples:
        raise NotFoundError(
            f"{folder}: no images in its {counted(len(names), 'folder')}",
            hint="their names end in .jpg, .png or .webp",
        )
    return image_set(samples, str(folder), rule, remarks)


def class_labels(
    names: list[str], num_classes: int, folder: Path, order: ClassOrder | None = None
) -> tuple[dict[str, int], str, list[str]]:
    """Index of each class folder, the rule that gave it, and notes on it."""
    wnids = {one.wnid: one.index for one in imagenet_classes()}
    if num_classes == len(wnids) and order is None:
        strange = [name for name in names if name not in wnids]
        if strange:
            way = "give a flat folder and --labels"
            if len(names) == num_classes:
                way = "add --class-order number (or text) where they are in the model's order"
            raise UsageError(
                f"{folder}: not classes of ImageNet-1K: {listed(strange, _NAMED)} "
                f"({len(strange):,} of {counted(len(names), 'folder')})",
                hint=f"call each one by its WordNet id, like n02099601, or {way}",
            )
        return {name: wnids[name] for name in names}, "folders are WordNet ids of ImageNet-1K", []
    if len(names) != num_classes:
        raise UsageError(
            f"{folder}: {counted(len(names), 'class folder')} for a model of {counted(num_classes, 'class')}",
            hint="give one folder for each class, or a flat folder and --labels",
        )
    by_text, by_number = sorted(names), sorted(names, key=lambda name: (_with_numbers(name), name))
    chosen = by_number if order == "number" else by_text
    rule = "classes are folders in the order of their names"
    labels = {name: index for index, name in enumerate(chosen)}
    if by_text == by_number:
        return labels, rule, []
    rule += ", as numbers" if order == "number" else ", as text"
    first, other = next(pair for pair in zip(by_text, by_number, strict=True) if pair[0] != pair[1])
    remark = (
        f"class folder {first} comes before {other}, as text is ordered; if the model counts its classes by "
        "number, add --class-order number (--class-order text keeps this order)"
    )
    return labels, rule, [remark] if order is None else []


def _with_numbers(name: str) -> list[str | int]:
    """Text and numbers in turn.

    >>> _with_numbers("class10a")
    ['class', 10, 'a']
    """
    return [int(part) if part[:1] in set("0123456789") else part for part in re.split("([0-9]+)", name)]


def labelled_folder(folder: Path, labels: Path, num_classes: int) -> ImageSet:
    """Read a folder whose images' classes are listed in a file."""
    found = dict(_label_lines(labels, num_classes))
    remarks: list[str] = []
    there = {path.relative_to(folder).as_posix(): path for path in images_below(folder, remarks.append)}
    absent = [name for name in found if name not in there]
    if absent:
        raise NotFoundError(
            f"{folder}: {labels} lists missing images: {listed(absent, _NAMED)}",
            hint="names are relative to the folder",
        )
    if not found:
        raise NotFoundError(
            f"{labels}: no labels in it", hint="write lines like ILSVRC2012_val_00000001.JPEG 65"
        )
    samples = [Sample(name, there[name], label) for name, label in found.items()]
    left = len(there) - len(found)
    rule = f"labels from {labels}" + (f"; {counted(left, 'image')} without a label left out" if left else "")
    return image_set(samples, str(folder), rule, remarks)


def _encoding(start: bytes) -> str:
    """UTF-8, or UTF-16 where a file begins so (PowerShell writes it), with or without the mark."""
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _label_lines(path: Path, num_classes: int) -> Iterator[tuple[str, int]]:
    seen: set[str] = set()
    encoding = "utf-8"
    try:
        with cast(io.BufferedReader, open_named(path)) as file:
            encoding = _encoding(file.peek(2))
            lines = io.TextIOWrapper(file, encoding, errors="surrogateescape")
            for number, line in enumerate(iter(lambda: lines.readline(_LINE_BYTES), ""), start=1):
                if not line.strip() or line.startswith("#"):
                    continue
                name, _, label = (
                    line.strip().rpartition(" ") if "\t" not in line else line.strip().rpartition("\t")
                )
                name = name.strip().removeprefix("./")
                if not name:
                    raise FormatError(
                        path,
                        f"line {number} is {line.strip()[:40]!r}, not a name and a class",
                        hint="class numbers alone could be of another order (ILSVRC's own count from 1)",
                    )
                if name in seen:
                    raise FormatError(path, f"line {number}: {name} has a class already")
                seen.add(name)
                yield name, class_index(label, num_classes, f"{path}: line {number}")
    except UnicodeError as error:
        raise FormatError(path, f"damaged {encoding.upper()} text", hint="write it in UTF-8") from error
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file of labels", hint="check --labels") from error
    except OSError as error:
        raise storage_error(error, path) from error


def class_index(text: str, num_classes: int, where: str) -> int:
    """Read a class's index, or its WordNet id where the model has ImageNet-1K's classes.

    >>> class_index("207", 1000, "x"), class_index("n02099601", 1000, "x")
    (207, 207)
    """
    stripped = text.strip()
    if stripped.isascii() and stripped.isdigit() and len(stripped) < 10:
        if int(stripped) < num_classes:
            return int(stripped)
        raise FormatError(
            where, f"class {stripped} for a model of {counted(num_classes, 'class')} (0 to {num_classes - 1})"
        )
    by_wnid = {one.wnid: one.index for one in imagenet_classes()}
    if num_classes == len(by_wnid) and stripped in by_wnid:
        return by_wnid[stripped]
    raise FormatError(where, f"{stripped[:40]!r} is not a class", hint="give its index, counted from 0")


def any_images(folder: Path) -> ImageSet:
    """Read every image below a folder, without labels."""
    remarks: list[str] = []
    found = images_below(folder, remarks.append)
    samples = [Sample(path.relative_to(folder).as_posix(), path) for path in found]
    if not samples:
        raise NotFoundError(f"{folder}: no images in it", hint="their names end in .jpg, .png or .webp")
    return image_set(samples, str(folder), remarks=remarks)


def has_folders(folder: Path) -> bool:
    """Whether there are folders in it that could be classes."""
    return any(entry.is_dir() for entry in entries_of(folder))


def images_below(folder: Path, remark: Callable[[str], None], above: Sequence[Path] = ()) -> Iterator[Path]:
    """Images in a folder and all below it, as `files_below` finds them; a link in a circle is remarked on."""

    def circle(link: Path) -> None:
        remark(f"{link} leads back to a folder that it is in, and was not followed")

    return (path for path in files_below(folder, circle, above) if path.suffix.lower() in IMAGE_ENDINGS)


_LABEL_BYTES = 1 << 16
_NAME_BYTES, _BLOCKS_A_NAME = 4 << 20, 8
"""Names are kept: this many bytes of them, and an eighth of the file's size, where each member takes 512."""
_MEMBERS = 10_000_000
_MAX_SHARDS = 100_000
_IMAGES = frozenset(ending.removeprefix(".") for ending in IMAGE_ENDINGS)
_BRACES = re.compile(r"\{([0-9]{1,12})\.\.([0-9]{1,12})\}")
_MOST_BRACES = 50
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


def shard_paths(pattern: str) -> list[Path] | None:
    """Expand a pattern to the paths of shards; None where it is a plain path.

    ``{000000..000049}`` is every number in between, each of which must be there.

    >>> shard_paths("folder") is None
    True
    """
    if Path(pattern).exists():
        return None
    if (ranges := len(_BRACES.findall(pattern))) > _MOST_BRACES:
        raise UsageError(f"{pattern}: more than {_MOST_BRACES} ranges", hint="write a range for each level")
    if ranges:
        paths = [Path(text) for text in _expanded(pattern)]
        absent = [path for path in paths if not path.is_file()]
        if absent:
            raise NotFoundError(
                f"{pattern}: {len(absent)} of {counted(len(paths), 'shard')} are not "
                f"there, {absent[0]} first",
                hint="check the range",
            )
        return paths
    if any(sign in pattern for sign in "*?["):
        import glob

        path = Path(pattern)
        if path.parent.is_dir():  # its name may have brackets
            found = sorted(path.parent.glob(path.name))
        else:
            found = sorted(Path(name) for name in glob.glob(pattern))  # noqa: PTH207  # absolute ones too
        if not found:
            raise NotFoundError(f"{pattern}: nothing matches this pattern", hint="check the path")
        return found
    return None


def _expanded(pattern: str) -> list[str]:
    """Expand a pattern of number ranges; numbers keep the first one's width."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MAX_SHARDS:
        raise UsageError(
            f"{pattern}: {found[0]} is not a range of shards", hint="write it like {000000..000049}"
        )
    heads = [f"{pattern[: found.start()]}{n:0{len(found[1])}d}" for n in range(first, last + 1)]
    tails = _expanded(pattern[found.end() :])
    if len(heads) * len(tails) > _MAX_SHARDS:
        raise UsageError(f"{pattern}: more than {_MAX_SHARDS:,} shards")
    return [head + tail for head in heads for tail in tails]


def read_shards(paths: Sequence[Path], num_classes: int | None, what: str) -> ImageSet:
    """Index shards."""
    names = shard_names(paths)
    samples = [
        sample
        for name, path in zip(names, paths, strict=True)
        for sample in _samples_of(path, name, num_classes)
    ]
    if not samples:
        raise NotFoundError(f"{what}: no images in it", hint="members are called like 0001.jpg, 0001.cls")
    rule = "" if num_classes is None else "classes are those the shards state"
    count = f"{counted(len(paths), 'shard')}, " if len(paths) > 1 else ""
    return image_set(samples, f"{count}{what}", rule)


def shard_names(paths: Sequence[Path]) -> list[str]:
    """What to call each shard: its file name where no two share one, else its path."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [path.as_posix() for path in paths]


@dataclass
class _Parts:
    """A sample's members, as they are met."""

    image: tuple[int, int] | None = None
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, path: Path, key: str, ending: str, place: tuple[int, int]) -> None:
        if ending in _IMAGES:
            if self.image is not None:
                raise FormatError(path, f"sample {key} has two images")
            self.image = place
        elif ending in ("cls", "json"):
            self.labels[ending] = place


def _samples_of(path: Path, name: str, num_classes: int | None) -> Iterator[Sample]:
    found: dict[str, _Parts] = {}
    try:
        with open_regular(path) as file:
            names = os.fstat(file.fileno()).st_size // _BLOCKS_A_NAME + _NAME_BYTES
            for member in members(path, file):
                names -= len(member.name)
                if names < 0:
                    raise FormatError(path, "its members' names take more than the images could")
                if member.name.rpartition("/")[2].startswith("."):
                    continue  # what macOS adds
                key, ending = _split(member.name)
                found.setdefault(key, _Parts()).add(path, key, ending, (member.offset_data, member.size))
            for key, parts in found.items():
                if parts.image is not None:
                    label = None if num_classes is None else _label(path, file, key, parts, num_classes)
                    yield Sample(f"{name}/{key}", path, label, *parts.image)
                elif "cls" in parts.labels:
                    raise FormatError(path, f"sample {key} has a class but no image")
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such shard", hint="check the path") from error
    except OSError as error:
        raise storage_error(error, path) from error


def _split(name: str) -> tuple[str, str]:
    """Key and kind of a member.

    >>> _split("val/n01440764.x/0001.seg.PNG")
    ('val/n01440764.x/0001', 'seg.png')
    """
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Walk over the files of an uncompressed tar archive from header to header."""
    head = file.read(512)
    kind = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)
    if kind is not None:
        raise FormatError(
            path, f"compressed with {kind}, so its images cannot be read at random", hint="unpack it to .tar"
        )
    return members_in_place(path, file, most=_MEMBERS)


def _label(path: Path, file: BinaryIO, key: str, parts: _Parts, num_classes: int) -> int:
    where = f"{path}: {key}"
    for ending in ("cls", "json"):
        if ending not in parts.labels:
            continue
        offset, size = parts.labels[ending]
        if size > _LABEL_BYTES:
            raise FormatError(where, f"its .{ending} has {size:,} bytes")
        file.seek(offset)
        text = file.read(size)
        if ending == "cls":
            return class_index(text.decode("utf-8-sig", "replace"), num_classes, where)
        return class_index(str(_json_label(text, where)), num_classes, where)
    raise FormatError(where, "an image without a class", hint="it needs a .cls or .json beside it")


def _json_label(text: bytes, where: str) -> object:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(where, "its .json cannot be read") from error
    if not isinstance(found, dict) or "label" not in found:
        raise FormatError(where, "its .json has no label")
    return found["label"]


def open_images(
    data: Sequence[str | Path],
    num_classes: int | None,
    *,
    labels: Path | None = None,
    class_order: ClassOrder | None = None,
) -> ImageSet:
    """Find test images, in any form `class_folders`, `labelled_folder` and `read_shards` know."""
    if not data:
        raise UsageError("no test images", hint="name them with --data")
    folder = _folder_of_images(data)
    if labels is not None and (folder is None or num_classes is None):
        raise UsageError("--labels works only with a folder of images", hint="shards state their own classes")
    if class_order is not None and (folder is None or num_classes is None or labels is not None):
        raise UsageError("--class-order works only with class folders", hint="leave it out")
    if folder is None:
        return read_shards(_shards(data), num_classes, ", ".join(map(str, data)))
    if num_classes is None:
        return any_images(folder)
    if labels is not None:
        return labelled_folder(folder, labels, num_classes)
    if not has_folders(folder):
        raise UsageError(
            f"{folder}: neither class folders nor tar shards in it",
            hint="give a folder of folders, or name a file of classes with --labels",
        )
    return class_folders(folder, num_classes, class_order)


def _folder_of_images(data: Sequence[str | Path]) -> Path | None:
    """The folder of images that was named; None for shards."""
    folders = [Path(one) for one in data if Path(one).is_dir() and not _tars(Path(one))]
    if folders and len(data) > 1:
        raise UsageError(
            f"{folders[0]} is a folder of images: only one can be given",
            hint="name one folder, or shards",
        )
    return folders[0] if folders else None


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if path.is_file())


def _shards(data: Sequence[str | Path]) -> list[Path]:
    paths: list[Path] = []
    for one in data:
        path = Path(one)
        expanded = shard_paths(str(one))
        if expanded is not None:
            paths += expanded
        elif path.is_dir():
            paths += _tars(path)
        elif path.exists():
            paths.append(path)
        else:
            raise NotFoundError(f"{one}: no such folder or shard", hint="check --data")
    return paths


_BATCHES_AHEAD = 2
_MAX_THREADS = 8


@dataclass(frozen=True)
class Batch:
    """Images ready for a model."""

    positions: list[int]  # which images of the set they are
    images: Array  # (N, H, W, 3) float32
    # Position → what is wrong, for images that cannot be decoded: they are not in ``images``
    bad: dict[int, str]


def load_batches(
    images: ImageSet,
    groups: Sequence[Sequence[int]],
    preprocessing: Preprocessing,
    *,
    workers: int | None,
) -> Generator[Batch, None, None]:
    """Load images batch by batch, in threads: by default one for each core, at most eight.

    Pillow releases the interpreter's lock while it decodes and resizes, so threads use all cores, work the
    same under every framework, and need no copies of the list of images.
    """
    if workers is None:
        workers = min(_MAX_THREADS, os.cpu_count() or 1)
    if workers == 0:
        for group in groups:
            yield _batch(group, [_load(images.samples[p], preprocessing) for p in group], preprocessing)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ckptkit-images")
    waiting: deque[tuple[Sequence[int], list[Future[Array | str]]]] = deque()
    rest = iter(groups)
    try:
        while True:
            for group in itertools.islice(rest, _BATCHES_AHEAD + 1 - len(waiting)):
                loads = [pool.submit(_load, images.samples[p], preprocessing) for p in group]
                waiting.append((group, loads))
            if not waiting:
                return
            group, loads = waiting.popleft()
            yield _batch(group, [load.result() for load in loads], preprocessing)
    finally:
        pool.shutdown(cancel_futures=True)


def _load(sample: Sample, preprocessing: Preprocessing) -> Array | str:
    """One image, or what is wrong with it."""
    try:
        with opened_image(sample.read(), sample.name) as picture:
            return preprocessing(picture)
    except FormatError as error:
        return error.reason


def _batch(group: Sequence[int], loaded: Sequence[Array | str], preprocessing: Preprocessing) -> Batch:
    good = [(p, image) for p, image in zip(group, loaded, strict=True) if not isinstance(image, str)]
    bad = {p: image for p, image in zip(group, loaded, strict=True) if isinstance(image, str)}
    stacked = numpy.stack([image for _, image in good]) if good else numpy.empty((0, *preprocessing.size, 3))
    return Batch([p for p, _ in good], stacked.astype(numpy.float32, copy=False), bad)
