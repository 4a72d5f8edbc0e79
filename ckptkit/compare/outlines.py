"""A checkpoint's outline: the names, shapes and element types of its tensors, without their values.

It comes from a checkpoint of any format, or from a JSON file: what ``ckptkit inspect --json`` prints, or
plain ``{"name": [shape]}``, as one line of Python makes it of a model that has no checkpoint yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, OPAQUE, DType, TensorSpec
from ckptkit.formats.base import Reader
from ckptkit.formats.json_text import MAX_TEXT_BYTES, JsonError, is_count, parse_json
from ckptkit.formats.shards import INDEX_ENDINGS
from ckptkit.registry.document import read_text
from ckptkit.workspace import Named, Workspace

_USUAL = DTYPES["float32"]


@dataclass(frozen=True)
class Outline:
    """Names, shapes and element types of a checkpoint's tensors."""

    name: str  # what the user called it
    path: Path
    specs: Mapping[str, TensorSpec]
    left_out: Mapping[str, str] = field(default_factory=dict)  # tensors that cannot be read, and why not
    metadata: Mapping[str, str] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)  # tensors that are the very same as an earlier one
    called: Mapping[str, str] = field(default_factory=dict)  # tensors by the names that the author gave
    has_dtypes: bool = True  # False where it is a JSON file that gives shapes alone


def outline_of(
    workspace: Workspace,
    what: Named,
    *,
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
) -> Outline:
    """The outline of a checkpoint, or of a JSON file of names and shapes."""
    if not isinstance(what, str | Path) or not is_json(Path(what)):
        located = workspace.locate(
            what, fetch=False, state_dict=state_dict, strip_prefix=strip_prefix, far=True
        )
        with located.open(unwrap=False) as reader:
            return outline_in(reader, located.name, located.path)
    path = Path(what)
    text, data = read_text(
        path,
        MAX_TEXT_BYTES,
        FormatError(path, "not a file"),
        lambda fault: FormatError(path, fault),
        "utf-8-sig",
    )
    try:
        value = parse_json(text, Budget(len(data), JsonError))
        rows = list(_rows(value))
    except JsonError as error:
        raise FormatError(path, f"not JSON of names and shapes: {error}") from error
    specs = {name: TensorSpec(name, dtype or _USUAL, shape) for name, shape, dtype in rows}
    if len(specs) != len(rows):
        raise FormatError(path, "two tensors of one name")
    return Outline(str(what), path, specs, has_dtypes=all(dtype for _, _, dtype in rows))


def outline_in(reader: Reader, name: str, path: Path) -> Outline:
    """The outline of an open checkpoint."""
    return Outline(
        name,
        path,
        dict(reader.specs),
        dict(reader.left_out),
        dict(reader.metadata),
        dict(reader.same),
        dict(reader.called),
    )


def is_json(path: Path) -> bool:
    """Whether a path is that of a JSON file which is not the index of a checkpoint's shards."""
    return path.suffix == ".json" and not path.name.endswith(INDEX_ENDINGS) and path.is_file()


def _rows(value: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], DType | None]]:
    """Name, shape and element type of each tensor."""
    listed = value.get("tensors")
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        for name, one in value.items():
            row = one if isinstance(one, dict) else {"shape": one}
            yield name, _shape(name, row.get("shape")), _dtype(name, row.get("dtype"))
        return
    for row in listed:
        if not isinstance(name := row.get("name"), str):
            raise JsonError("a tensor without a name")
        yield name, _shape(name, row.get("shape")), _dtype(name, row.get("dtype"))


def _shape(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(is_count(length) for length in value):
        raise JsonError(f"the shape of {name[:80]!r} is not a list of lengths")
    return tuple(value)


def _dtype(name: str, value: object) -> DType | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise JsonError(f"the dtype of {name[:80]!r} is not text")
    plain = value.removeprefix("torch.")
    return DTYPES.get(plain) or OPAQUE.get(plain) or DType(plain, 0, "opaque")
