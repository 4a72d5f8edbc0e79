"""The whole of a verification: one pass over the file, then one answer to each question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import TensorSpec
from ckptkit.compare.verify.architecture import UNKNOWN, Fit, check_batch_norm, fit
from ckptkit.compare.verify.checksum import check_checksum
from ckptkit.compare.verify.parameters import check_parameters
from ckptkit.compare.verify.report import CONTAINER, PARAMETERS, Check, VerifyReport, counted
from ckptkit.compare.verify.values import ValueRange, check_values, has_values, value_range
from ckptkit.families.binding import FileFacts, Weights
from ckptkit.formats.base import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptkit.workspace import Located, Progress

_CHECKSUM_NAMES = {"tf": "crc32c", "torch": "zip CRC-32", "npz": "zip CRC-32"}
_COPIES = frozenset({"moving averages", "raw weights"})
"""Rules that leave out the copy of the weights that was not chosen: its values are looked at all the same."""


def verify_checkpoint(
    located: Located,
    *,
    deep: bool = False,
    weights: Weights = "auto",
    variant: str | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Put every question to a checkpoint.

    Parameters
    ----------
    located : Located
        What to verify; see `ckptkit.workspace.Workspace.locate` with ``fetch=False``.
    deep : bool
        Also compare every tensor with the checksum that the container stores for it.
    weights : {"auto", "ema", "raw"}
        Which copy to set against the architecture where the file holds both. Values are looked at in both,
        where they stand side by side; a state dict of its own is another look.
    variant : str, optional
        Overrides what the file is recognised as.
    progress : Progress, optional
        Opens a display for (description, total bytes).

    Returns
    -------
    VerifyReport

    Raises
    ------
    FormatError
        When the container is too damaged to be opened. Tensors that differ from their stored checksum are a
        failed check (`VerifyReport.damaged`), so that all of them get listed.
    NotFoundError
        When there is no such file, or no such ``variant``.
    UsageError
        When a copy is asked for that the file does not hold.
    StorageError
        When the file cannot be read.
    """
    show = progress or _silent
    with located.open(weights) as reader:
        known = FileFacts.of(reader, located.entry)
        fitted = fit(reader.specs, entry=located.entry, variant=variant, weights=weights, known=known)
        checksum = check_checksum(located, show)
        roles = fitted.roles(reader.specs)
        wanted, left_out = _to_look_at(reader.specs, fitted)
        with show(f"reading {located.name}", sum(spec.nbytes for spec in reader.specs.values())) as advance:
            passed = _read_once(reader, wanted, deep=deep, advance=advance)
        return VerifyReport(
            name=located.name,
            path=located.path,
            entry=located.entry.id if located.entry else None,
            format=reader.format,
            family=fitted.recognition.family.name if fitted.recognition else None,
            variant=fitted.recognition.variant if fitted.recognition else None,
            layout=fitted.recognition.layout if fitted.recognition else None,
            weights=fitted.match.weights if fitted.match else None,
            deep=deep,
            checks=(
                checksum,
                _check_container(reader, passed, deep=deep),
                fitted.check,
                check_batch_norm(fitted.match, passed.ranges, located.entry, reader.metadata),
                check_values(
                    passed.ranges,
                    reader.specs,
                    roles,
                    left_out={
                        **left_out,
                        "damaged": len(passed.damaged),
                        "that cannot be read": len(reader.left_out),
                    },
                ),
                check_parameters(fitted.match, reader.specs, located.entry)
                if fitted.match
                else Check(PARAMETERS, "skipped", UNKNOWN),
            ),
            notes=(
                *reader.notes,
                *(f"{name} cannot be read: {why}" for name, why in reader.left_out.items()),
            ),
        )


def _silent(_description: str, _total: int | None) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _steps: None)


@dataclass
class _Pass:
    """What one pass over a file's tensors gave."""

    ranges: dict[str, ValueRange] = field(default_factory=dict)
    verified: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def _to_look_at(specs: Mapping[str, TensorSpec], fitted: Fit) -> tuple[frozenset[str], Counter[str]]:
    """Names whose values matter, and why how many others do not."""
    ignored = fitted.match.ignored if fitted.match else ()
    leftovers = {one.name for one in ignored if one.rule not in _COPIES}
    wanted = {name for name, spec in specs.items() if name not in leftovers and has_values(spec)}
    why = Counter(
        "left out by rule"
        if name in leftovers
        else "of a type without numbers"
        if spec.dtype.is_opaque
        else "of integers or empty"
        for name, spec in specs.items()
        if name not in wanted
    )
    return frozenset(wanted), why


def _read_once(
    reader: Reader, wanted: frozenset[str], *, deep: bool, advance: Callable[[int], None]
) -> _Pass:
    passed = _Pass()
    for name, spec in reader.specs.items():
        try:
            if deep:
                passed.verified += reader.check(name)
            if name in wanted:
                passed.ranges[name] = value_range(reader.read(name))
        except FormatError as error:
            passed.damaged[name] = str(error)
        reader.release(name)
        advance(spec.nbytes)
    if deep and not passed.damaged:
        try:
            reader.check_rest()
        except FormatError as error:
            passed.damaged[""] = str(error)
    return passed


def _check_container(reader: Reader, passed: _Pass, *, deep: bool) -> Check:
    count = counted(len(reader.specs), "tensor")
    what = f"{reader.format}, {count}, {sum(spec.nbytes for spec in reader.specs.values()):,} bytes of data"
    if passed.damaged:
        detail = f"{what}: {len(passed.damaged):,} damaged; fetch or copy the file again"
        return Check(CONTAINER, "failed", detail, tuple(passed.damaged.values()))
    if not deep:
        return Check(
            CONTAINER, "ok", f"{what}: sound; its tensors' checksums were not verified (--deep does)"
        )
    if not passed.verified:
        return Check(CONTAINER, "ok", f"{what}: sound; it stores no checksums of its tensors")
    kind = _CHECKSUM_NAMES.get(reader.format, "stored checksum")
    apart = f", {len(reader.specs) - passed.verified:,} have none" * (passed.verified < len(reader.specs))
    return Check(CONTAINER, "ok", f"{what}: {passed.verified:,} agree with their {kind}{apart}")
