"""What a comparison of two files found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ckptkit.compare.diff.values import Tolerance, ValueDifference

Kind = Literal["shape", "dtype", "values"]
PairedBy = Literal["architecture", "names"]


@dataclass(frozen=True)
class Side:
    """One of the two files.

    Parameters
    ----------
    name : str
        The entry's id, or the path.
    path : Path
        Where the tensors were read.
    format : str
        The container.
    family, variant, layout : str or None
        What the tensors were recognised as.
    weights : str or None
        ``ema`` or ``raw``: which copy was taken where the file holds both.
    state_dict : str or None
        Which state dict was read, in a PyTorch file with several.
    tensors : int
        How many there are to read.
    left_out : mapping of str to str
        Tensors that cannot be read, so that nothing tells whether they differ, and why not.
    also : mapping of str to str
        What else is in the file and is no tensor of the model, in a few words each.
    """

    name: str
    path: Path
    format: str
    family: str | None
    variant: str | None
    layout: str | None
    weights: str | None
    state_dict: str | None
    tensors: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class Lone:
    """A tensor that only one of the files has.

    Parameters
    ----------
    name : str
        In that file.
    dtype : str
    shape : tuple of int
    canonical : str or None
        Its canonical name, where it is one of a known architecture's.
    remark : str
        What is known of it; empty where nothing is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    canonical: str | None = None
    remark: str = ""


@dataclass(frozen=True)
class Changed:
    """A tensor that both files have, and not alike.

    Parameters
    ----------
    name : str
        What both files call it, else its canonical name.
    kind : {"shape", "dtype", "values"}
        The first that differs.
    name_a, name_b : str
        In the files.
    shape_a, shape_b : tuple of int
        In the axis order of the comparison: the files' own where both have one layout, else the canonical.
    dtype_a, dtype_b : str
    values : ValueDifference or None
        None where nothing could be compared: other shapes, or an opaque type and another one.
    tolerated : bool
        Whether the tolerance covers it, so that it counts as no difference.
    """

    name: str
    kind: Kind
    name_a: str
    name_b: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    values: ValueDifference | None = None
    tolerated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        return {**asdict(self), "values": self.values.to_json() if self.values else None}


@dataclass(frozen=True)
class OtherMetadata:
    """Something that the files say differently of themselves.

    Parameters
    ----------
    key : str
    a, b : str or None
        None where a file does not say it.
    counts : bool
        False for what only tells how a file was made.
    """

    key: str
    a: str | None
    b: str | None
    counts: bool = True


@dataclass(frozen=True)
class Difference:
    """Everything that differs between two files.

    Parameters
    ----------
    a, b : Side
    paired_by : {"architecture", "names"}
        Through the canonical names of one family, or by plain names.
    paired : int
        Tensors that both files have.
    identical : int
        Those of them that agree in shape, type and every bit.
    only_a, only_b : tuple of Lone
        Tensors that only one file has.
    left_out_a, left_out_b : tuple of Lone
        The same, where a named rule explains it: these do not count.
    changed : tuple of Changed
        Worst first: values that no tolerance covers, then by relative difference.
    metadata : tuple of OtherMetadata
        Empty unless asked for.
    tolerance : Tolerance
        What was allowed.
    only : str or None
        The pattern that chose the tensors looked at; None for all.
    notes : tuple of str
        One plain sentence each.
    """

    a: Side
    b: Side
    paired_by: PairedBy
    paired: int
    identical: int
    only_a: tuple[Lone, ...]
    only_b: tuple[Lone, ...]
    left_out_a: tuple[Lone, ...]
    left_out_b: tuple[Lone, ...]
    changed: tuple[Changed, ...]
    metadata: tuple[OtherMetadata, ...]
    tolerance: Tolerance
    only: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs that counts."""
        return not (
            self.only_a
            or self.only_b
            or self.a.left_out
            or self.b.left_out
            or any(not one.tolerated for one in self.changed)
            or any(one.counts for one in self.metadata)
        )

    def of_kind(self, kind: Kind) -> tuple[Changed, ...]:
        """Tensors that differ in this way, beyond what is tolerated."""
        return tuple(one for one in self.changed if one.kind == kind and not one.tolerated)

    @property
    def tolerated(self) -> tuple[Changed, ...]:
        """Tensors that differ by no more than is tolerated."""
        return tuple(one for one in self.changed if one.tolerated)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors there are of each sort."""
        return {
            "paired": self.paired,
            "identical": self.identical,
            "tolerated": len(self.tolerated),
            "only_in_a": len(self.only_a),
            "only_in_b": len(self.only_b),
            "not_read_in_a": len(self.a.left_out),
            "not_read_in_b": len(self.b.left_out),
            "other_shape": len(self.of_kind("shape")),
            "other_dtype": len(self.of_kind("dtype")),
            "other_values": len(self.of_kind("values")),
            "left_out_a": len(self.left_out_a),
            "left_out_b": len(self.left_out_b),
            "other_metadata": sum(one.counts for one in self.metadata),
        }

    @property
    def verdict(self) -> str:
        """All of it in one line."""
        of = f"of {_tensors(self.paired)} in both"
        counts = self.counts
        found = [
            *(
                f"{counts[f'only_in_{side}']:,} only in {side.upper()}"
                for side in "ab"
                if counts[f"only_in_{side}"]
            ),
            *(
                f"{counts[f'not_read_in_{side}']:,} in {side.upper()} cannot be read"
                for side in "ab"
                if counts[f"not_read_in_{side}"]
            ),
            *(
                f"{counts[f'other_{kind}']:,} {of} {_have(counts[f'other_{kind}'])} other {kind}"
                for kind in ("shape", "dtype", "values")
                if counts[f"other_{kind}"]
            ),
        ]
        if counts["other_metadata"]:
            found.append(f"metadata ({counts['other_metadata']:,})")
        if found:
            return f"differ: {'; '.join(found)}{self._tolerated_in_words('; besides, ')}"
        exact = f"{self.identical:,} bit for bit" if self.tolerated else "bit for bit"
        tolerated = self._tolerated_in_words(", ")
        return f"same: {_tensors(self.paired)}, {exact}{tolerated}{self._left_out_in_words()}"

    def _tolerated_in_words(self, before: str) -> str:
        if not self.tolerated:
            return ""
        most = max(one.values.max_abs for one in self.tolerated if one.values)
        return f"{before}{len(self.tolerated):,} within the tolerance (max abs {most:.3g})"

    def _left_out_in_words(self) -> str:
        sides = [
            f"{len(left_out):,} in {name}"
            for name, left_out in (("A", self.left_out_a), ("B", self.left_out_b))
            if left_out
        ]
        return f"; left out by rule: {', '.join(sides)}" if sides else ""

    def to_json(self, *, tensors: bool = True) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes; ``tensors=False`` leaves out every list of tensors."""
        values: dict[str, Any] = {
            "same": self.same,
            "verdict": self.verdict,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "paired_by": self.paired_by,
            "tolerance": asdict(self.tolerance),
            "only": self.only,
            "counts": self.counts,
            "metadata": [asdict(one) for one in self.metadata],
            "notes": list(self.notes),
        }
        if tensors:
            values |= {
                "only_in_a": _plain(self.only_a),
                "only_in_b": _plain(self.only_b),
                "left_out_a": _plain(self.left_out_a),
                "left_out_b": _plain(self.left_out_b),
                "changed": [one.to_json() for one in self.changed],
            }
        return values


def _plain(lone: Sequence[Lone]) -> list[dict[str, Any]]:
    return [asdict(one) for one in lone]


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"
