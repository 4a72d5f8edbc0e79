"""Parameter count: whether it is the published one."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from ckptkit.compare.verify.report import PARAMETERS, Check
from ckptkit.families.base import Structure
from ckptkit.families.binding import Match

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptkit.base.tensors import TensorSpec
    from ckptkit.registry import Entry

_POWERS = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
_CLASSES = 1000


def rounds_to(count: float, figure: str) -> bool:
    """Whether a count rounds to a published figure at the figure's own precision.

    A count exactly between two figures rounds to both, since nobody says how the publishers rounded.

    Examples
    --------
    >>> rounds_to(27846892, "27.8M"), rounds_to(27846892, "27.85M"), rounds_to(27846892, "27.9M")
    (True, True, False)
    >>> rounds_to(2956066, "2.97M")
    False
    """
    suffix = figure[-1] if figure[-1] in _POWERS else ""
    digits = Decimal(figure.removesuffix(suffix))
    unit = Decimal(10) ** _POWERS[suffix]
    last_place = Decimal(10) ** int(digits.as_tuple().exponent)
    return abs(Decimal(count) - digits * unit) * 2 <= last_place * unit


def check_parameters(found: Match, specs: Mapping[str, TensorSpec], entry: Entry | None) -> Check:
    """Count the trainable parameters and compare them with the entry's figures.

    Parameters
    ----------
    found : Match
        The tensors set against the architecture.
    specs : mapping of str to TensorSpec
        The file's tensors.
    entry : Entry or None
        Without one, the architecture's own count is the measure.
    """
    table = found.recognition.table
    count = sum(
        specs[found.sources[row.canonical]].size
        for row in table.bindings
        if row.trainable and row.canonical in found.sources
    )
    if entry is None or (entry.exact_parameters is None and entry.published_params is None):
        return _against_architecture(found, count)
    head = _missing_head(found)
    apart = f" and {head:,} of the head that this file lacks" if head else ""
    faults = []
    exact = entry.exact_parameters
    if exact is not None and count + head != exact:
        faults.append(f"{count:,} parameters{apart}, but the published code has {exact:,}")
    published = entry.published_params
    remark = ""
    if published is not None:
        remark = f"; published as {published}"
        if not rounds_to(count + head, published):
            known = entry.known_deviation("params")
            if exact == count + head and known is not None:
                remark += f", which it does not round to (known deviation: {known.reason})"
            else:
                faults.append(f"{count + head:,} parameters do not round to the published {published}")
    if faults:
        return Check(PARAMETERS, "failed", "; ".join(faults))
    agrees = "as the published code has" if exact is not None else "no exact count in the registry"
    return Check(PARAMETERS, "ok", f"{count:,} trainable parameters{apart}, {agrees}{remark}")


def _against_architecture(found: Match, count: int) -> Check:
    wanted = found.recognition.table.parameters
    what = found.recognition.variant
    if count != wanted:
        return Check(PARAMETERS, "failed", f"{count:,} trainable parameters, but {what} has {wanted:,}")
    return Check(
        PARAMETERS, "ok", f"{count:,} trainable parameters, as {what} has (no registry entry to compare with)"
    )


def _missing_head(found: Match) -> int:
    """Parameters of the classification head that published counts include and a headless file lacks."""
    recognition = found.recognition
    if recognition.structure.num_classes is not None:
        return 0
    whole = recognition.family.table(
        recognition.layout, recognition.variant, Structure(recognition.structure.pos_emb, _CLASSES)
    )
    return whole.parameters - recognition.table.parameters
