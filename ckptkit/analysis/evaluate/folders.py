"""Image folders: one folder a class, a flat folder with a file of labels, or just images."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

from ckptkit.analysis.evaluate.samples import IMAGE_ENDINGS, ImageSet, Sample, image_set, stamp_of
from ckptkit.base.errors import FormatError, NotFoundError, UsageError, listed, storage_error
from ckptkit.base.files import open_named
from ckptkit.models.images.classes import imagenet_classes
from ckptkit.models.images.gathering import entries_of, files_below

ClassOrder = Literal["text", "number"]

_LINE_BYTES = 4096
_NAMED = 3


def class_folders(folder: Path, num_classes: int, order: ClassOrder | None = None) -> ImageSet:
    """Read a folder that has one folder for each class."""
    names = [entry.name for entry in entries_of(folder) if entry.is_dir()]
    labels, rule, remarks = class_labels(names, num_classes, folder, order)
    samples = [
        Sample(path.relative_to(folder).as_posix(), path, labels[name])
        for name in names
        for path in images_below(folder / name, remarks.append, [folder])
    ]
    if not samples:
        raise NotFoundError(
            f"{folder}: no images in its {len(names)} folders", hint="their names end in .jpg, .png or .webp"
        )
    stamps = (stamp_of(sample.path) for sample in samples)
    return image_set(samples, stamps, str(folder), rule, tuple(remarks))


def class_labels(
    names: list[str], num_classes: int, folder: Path, order: ClassOrder | None = None
) -> tuple[dict[str, int], str, list[str]]:
    """Tell each class folder's index, by which rule, and what to know about it, in words."""
    wnids = {one.wnid: one.index for one in imagenet_classes()}
    if num_classes == len(wnids) and order is None:
        strange = [name for name in names if name not in wnids]
        if strange:
            way = "give a flat folder and --labels"
            if len(names) == num_classes:
                way = "add --class-order number (or text) where they are in the model's order"
            raise UsageError(
                f"{folder}: {listed(strange, _NAMED)} of its {len(names)} folders are not classes of "
                "ImageNet-1K",
                hint=f"call each one by its WordNet id, like n02099601, or {way}",
            )
        return {name: wnids[name] for name in names}, "folders are WordNet ids of ImageNet-1K", []
    if len(names) != num_classes:
        raise UsageError(
            f"{folder}: {len(names):,} class folders for a model of {num_classes:,} classes",
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
    """Read a folder whose images' classes stand in a file."""
    found = dict(_label_lines(labels, num_classes))
    remarks: list[str] = []
    there = {path.relative_to(folder).as_posix(): path for path in images_below(folder, remarks.append)}
    absent = [name for name in found if name not in there]
    if absent:
        raise NotFoundError(
            f"{folder}: {listed(absent, _NAMED)} of {labels} not there",
            hint="names are relative to the folder",
        )
    if not found:
        raise NotFoundError(
            f"{labels}: no labels in it", hint="write lines like ILSVRC2012_val_00000001.JPEG 65"
        )
    samples = [Sample(name, there[name], label) for name, label in found.items()]
    left = len(there) - len(found)
    rule = f"labels from {labels}" + (f"; {left:,} images have none and are left out" if left else "")
    stamps = (stamp_of(sample.path) for sample in samples)
    return image_set(samples, stamps, str(folder), rule, tuple(remarks))


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
                        f"line {number} is {line.strip()[:40]!r}, no name and class",
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
            where, f"class {stripped} for a model of {num_classes:,} classes (0 to {num_classes - 1})"
        )
    by_wnid = {one.wnid: one.index for one in imagenet_classes()}
    if num_classes == len(by_wnid) and stripped in by_wnid:
        return by_wnid[stripped]
    raise FormatError(where, f"{stripped[:40]!r} is no class", hint="give its index, counted from 0")


def any_images(folder: Path) -> ImageSet:
    """Read every image below a folder, without labels."""
    remarks: list[str] = []
    found = images_below(folder, remarks.append)
    samples = [Sample(path.relative_to(folder).as_posix(), path) for path in found]
    if not samples:
        raise NotFoundError(f"{folder}: no images in it", hint="their names end in .jpg, .png or .webp")
    stamps = (stamp_of(sample.path) for sample in samples)
    return image_set(samples, stamps, str(folder), remarks=tuple(remarks))


def has_folders(folder: Path) -> bool:
    """Whether there are folders in it that could be classes."""
    return any(entry.is_dir() for entry in entries_of(folder))


def images_below(folder: Path, remark: Callable[[str], None], above: Sequence[Path] = ()) -> Iterator[Path]:
    """Images in a folder and all below it, as `files_below` finds them; a link in a circle is remarked on."""

    def circle(link: Path) -> None:
        remark(f"{link} leads back to a folder that it is in, and was not followed")

    return (path for path in files_below(folder, circle, above) if path.suffix.lower() in IMAGE_ENDINGS)
