"""What a verification found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "failed", "skipped"]

CHECKSUM = "checksum"
CONTAINER = "container"
NAMES = "names and shapes"
BATCH_NORM = "BatchNorm statistics"
VALUES = "values"
PARAMETERS = "parameter count"


@dataclass(frozen=True)
class Check:
    """One question put to a checkpoint, and its answer.

    Parameters
    ----------
    name : str
        What was checked.
    status : {"ok", "failed", "skipped"}
        ``skipped`` says that the question could not be put, never that all is well.
    detail : str
        One line: what was found.
    items : tuple of str
        Every offender, one line each; in a check that holds, remarks.
    """

    name: str
    status: Status
    detail: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """Every check of one checkpoint.

    Parameters
    ----------
    name : str
        The entry's id, or the path.
    path : Path
        Where the tensors were read.
    entry : str or None
        Id of the registry entry.
    format : str
        The container: ``tf``, ``torch``, ``safetensors``, ``keras`` or ``npz``.
    family, variant, layout : str or None
        What the tensors were taken for; None where the architecture is not known.
    weights : str or None
        ``ema`` or ``raw``: which copy was set against the architecture where the file holds both.
    deep : bool
        Whether the tensors' stored checksums were verified too.
    checks : tuple of Check
    notes : tuple of str
        What the reader could not read or found unusual.
    """

    name: str
    path: Path
    entry: str | None
    format: str
    family: str | None
    variant: str | None
    layout: str | None
    weights: str | None
    deep: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that do not hold."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def damaged(self) -> bool:
        """Whether the container itself is damaged, as against holding the wrong tensors."""
        return any(check.name == CONTAINER for check in self.failed)

    @property
    def verdict(self) -> str:
        """All of it in one line.

        Examples
        --------
        >>> report = VerifyReport(
        ...     "a.npz", Path("a.npz"), None, "npz", None, None, None, None, False,
        ...     (Check("values", "failed", "1 NaN"), Check("checksum", "skipped", "no entry")),
        ... )
        >>> report.verdict
        'a.npz: does not hold: values; not checked: checksum'
        """
        skipped = [check.name for check in self.checks if check.status == "skipped"]
        left = f"; not checked: {', '.join(skipped)}" if skipped else ""
        if self.failed:
            return f"{self.name}: does not hold: {', '.join(check.name for check in self.failed)}{left}"
        if skipped:
            held = len(self.checks) - len(skipped)
            return f"{self.name}: no fault in {held} of {len(self.checks)} checks{left}"
        return f"{self.name}: holds, by {counted(len(self.checks), 'check')}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes."""
        values = asdict(self)
        values["path"] = str(self.path)
        return {"ok": self.ok, "damaged": self.damaged, **values}


def counted(count: int, noun: str) -> str:
    """Count with its noun.

    Examples
    --------
    >>> counted(1, "tensor"), counted(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
