"""The classes of ImageNet-1K: what the logits of a 1000-class head stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.base.files import open_named, storage_error
from ckptkit.base.text import counted

_MOST_TAGS = 64 << 20
_TABLE = Path(__file__).with_name("imagenet_classes.tsv")


@dataclass(frozen=True)
class ImageClass:
    """One class."""

    index: int  # place among the logits
    wnid: str  # wordNet id: the name of the class's folder in an ImageNet tree
    words: tuple[str, ...]  # wordNet's words for it, the usual one first

    @property
    def name(self) -> str:
        """The usual word. Two of them stand for two classes each: a crane, and a maillot."""
        return self.words[0]


@cache
def imagenet_classes() -> tuple[ImageClass, ...]:
    """The 1,000 classes, in the order of the logits.

    >>> imagenet_classes()[207]
    ImageClass(index=207, wnid='n02099601', words=('golden retriever',))
    """
    lines = [line for line in _TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return tuple(
        ImageClass(index, wnid, tuple(words.split(", ")))
        for index, (wnid, _, words) in enumerate(line.partition("\t") for line in lines)
    )


TAGS = "selected_tags.csv"
"""What the publisher of the WD taggers calls the list of their tags."""


def read_tags(path: Path, count: int) -> tuple[str, ...]:
    """The names in a tagger's list of tags, a row for each output: CSV with a column ``name``."""
    import csv
    import io

    try:
        with open_named(path) as stream:
            text = stream.read(_MOST_TAGS + 1).decode("utf-8-sig")
        if len(text) > _MOST_TAGS:
            raise ValueError(f"larger than {_MOST_TAGS:,} bytes")
        names = tuple(row["name"] for row in csv.DictReader(io.StringIO(text, newline="")))
    except OSError as error:
        raise storage_error(error, path) from error
    except (ValueError, csv.Error, KeyError) as error:
        why = "no column 'name'" if isinstance(error, KeyError) else str(error)
        raise FormatError(path, f"not a list of tags: {why}") from error
    if len(names) != count or None in names:
        raise FormatError(path, f"a list of {counted(len(names), 'tag')}, of a model with {count:,}")
    return names


def find_class(text: str, classes: Sequence[ImageClass] | None = None) -> ImageClass:
    """Read a class given by index, WordNet id or one of its words.

    >>> find_class("Golden Retriever").index
    207
    """
    classes = imagenet_classes() if classes is None else classes
    wanted = text.strip().casefold()
    if wanted.isascii() and wanted.isdigit():
        if int(wanted) < len(classes):
            return classes[int(wanted)]
        raise UsageError(f"unknown class {text}", hint=f"the classes are 0 to {len(classes) - 1}")
    found = [c for c in classes if wanted == c.wnid or wanted in (word.casefold() for word in c.words)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{text!r} means {counted(len(found), 'class')}",
            hint=" or ".join(f"{c.wnid} ({c.index})" for c in found),
        )
    near = [c.words[0] for c in classes if any(wanted in word.casefold() for word in c.words)][:5]
    hint = (
        "do you mean " + ", ".join(near) if near else "give an index, a WordNet id or a word of ImageNet-1K"
    )
    raise UsageError(f"unknown class {text!r}", hint=hint)
