"""Which tensor of a file is which tensor of the architecture.

Every tensor of the file is used, or left out by a named rule, or unexpected; every tensor of the
architecture is found, or missing. Callers decide what is an error: a conversion refuses, `verify` lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ckptkit.errors import ConversionError, UsageError
from ckptkit.families.base import Recognition
from ckptkit.layouts import Binding, Ignore
from ckptkit.tensors import TensorSpec

Weights = Literal["auto", "ema", "raw"]

_EMA_NOT_CHOSEN = Ignore("moving averages", "", "the raw weights were chosen")
_RAW_NOT_CHOSEN = Ignore("raw weights", "", "their moving averages were chosen")


@dataclass(frozen=True)
class Ignored:
    """A tensor of the file that is left out, by which rule and why."""

    name: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Match:
    """A file's tensors set against an architecture's.

    Parameters
    ----------
    recognition : Recognition
        What the file was taken for.
    weights : str or None
        ``ema`` or ``raw`` where the file holds both copies, None where it holds one.
    sources : mapping of str to str
        Canonical name → name in the file.
    ignored : tuple of Ignored
    unexpected : tuple of str
        Tensors of the file that nothing explains.
    missing : tuple of Binding
        Tensors of the architecture that the file lacks.
    wrong_shape : tuple of (Binding, TensorSpec)
        Tensors that are there with another shape.
    """

    recognition: Recognition
    weights: str | None
    sources: Mapping[str, str]
    ignored: tuple[Ignored, ...]
    unexpected: tuple[str, ...]
    missing: tuple[Binding, ...]
    wrong_shape: tuple[tuple[Binding, TensorSpec], ...]

    @property
    def lacks_bn_statistics(self) -> bool:
        """Whether every BatchNorm moving statistic is missing, as in MOAT's first uploads."""
        statistics = [b for b in self.recognition.table.bindings if b.part == "bn_statistics"]
        missing = {b.canonical for b in self.missing}
        return bool(statistics) and all(b.canonical in missing for b in statistics)


def match(specs: Mapping[str, TensorSpec], recognition: Recognition, *, weights: Weights = "auto") -> Match:
    """Set a file's tensors against the architecture it was recognised as.

    Parameters
    ----------
    specs : mapping of str to TensorSpec
    recognition : Recognition
    weights : {"auto", "ema", "raw"}
        Which copy to take where a file holds both; ``auto`` takes the moving averages.

    Raises
    ------
    UsageError
        When ``ema`` is asked for and the file holds no moving averages.
    ConversionError
        When only some of the parameters have a moving average.
    """
    table = recognition.table
    names = {b.canonical: _name_in_file(b, specs) for b in table.bindings}
    twins = _moving_averages(specs, recognition, names)
    if weights == "ema" and not twins:
        raise UsageError("this file holds no moving averages (EMA)", hint="leave --weights out, or say raw")
    take_ema = bool(twins) and weights != "raw"
    if take_ema:
        _require_whole(recognition, names, twins)
    sources: dict[str, str] = {}
    missing: list[Binding] = []
    wrong_shape: list[tuple[Binding, TensorSpec]] = []
    left_out = dict.fromkeys(twins.values(), _EMA_NOT_CHOSEN) if not take_ema else {}
    for binding in table.bindings:
        name = names[binding.canonical]
        if take_ema and binding.canonical in twins:
            if name is not None:
                left_out[name] = _RAW_NOT_CHOSEN
            name = twins[binding.canonical]
        if name is None:
            missing.append(binding)
            continue
        sources[binding.canonical] = name
        if specs[name].shape != binding.external_shape:
            wrong_shape.append((binding, specs[name]))
    used = set(sources.values())
    ignored: list[Ignored] = []
    unexpected: list[str] = []
    for name in specs:
        if name in used:
            continue
        rule = left_out.get(name) or next(
            (rule for rule in table.layout.ignores if rule.matches(name, table.by_external)), None
        )
        if rule is None:
            unexpected.append(name)
        else:
            ignored.append(Ignored(name, rule.name, rule.reason))
    return Match(
        recognition,
        ("ema" if take_ema else "raw") if twins else None,
        sources,
        tuple(ignored),
        tuple(unexpected),
        tuple(missing),
        tuple(wrong_shape),
    )


def _name_in_file(binding: Binding, specs: Mapping[str, TensorSpec]) -> str | None:
    return next((name for name in (binding.external, *binding.aliases) if name in specs), None)


def _moving_averages(
    specs: Mapping[str, TensorSpec], recognition: Recognition, names: Mapping[str, str | None]
) -> dict[str, str]:
    """Canonical name → name of its moving average in the file, for those that have one."""
    suffix = recognition.table.layout.ema_suffix
    if suffix is None:
        return {}
    found = {}
    for binding in recognition.table.bindings:
        plain = names[binding.canonical] or binding.external
        if plain + suffix in specs:
            found[binding.canonical] = plain + suffix
    return found


def _require_whole(
    recognition: Recognition, names: Mapping[str, str | None], twins: Mapping[str, str]
) -> None:
    lacking = [
        b.external
        for b in recognition.table.bindings
        if b.trainable and b.canonical not in twins and names[b.canonical] is not None
    ]
    if lacking:
        raise ConversionError(
            f"{len(lacking)} parameters have no moving average while others have one ({lacking[0]} …)",
            hint="--weights raw takes the raw weights",
        )
