"""Which tensor of a file is which tensor of the architecture.

Every tensor of the file is used, or left out by a named rule, or unexpected; every tensor of the
architecture is found, or missing. Callers decide what is an error: a conversion refuses, `verify` lists.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.tensors import TensorSpec
from ckptkit.base.text import counted
from ckptkit.families.base import Structure, families, get_family
from ckptkit.families.layouts import OPTIMIZER, OPTIMIZER_AVERAGES
from ckptkit.families.recognition import Recognition, recognise
from ckptkit.formats.base import Copy, Reader, Weights
from ckptkit.rules.language import Binding, Ignore, Table

if TYPE_CHECKING:
    from ckptkit.registry.schema import Entry

__all__ = ["FileFacts", "Ignored", "Match", "Weights", "match", "refuse_another", "wanted_copy"]

_NOT_CHOSEN: dict[Copy, Ignore] = {
    "ema": Ignore("moving averages", "", "the raw weights were chosen"),
    "raw": Ignore("raw weights", "", "their moving averages were chosen"),
}
_IN_WORDS: dict[Copy, str] = {"ema": "moving averages (EMA)", "raw": "raw weights"}


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file besides its tensors' names and shapes."""

    default_copy: Copy | None = None  # which copy the entry's published figures belong to
    selected_copy: Copy | None = None  # which one was opened, where each has a state dict of its own
    available_copy: Copy | None = None  # which one the tensors are, where the file holds one
    optimizer: Collection[str] = frozenset()  # tensors that the file says are an optimizer's
    unread: Mapping[str, str] = field(default_factory=dict)  # tensors that cannot be read, and why not

    @classmethod
    def of(cls, reader: Reader, entry: Entry | None) -> FileFacts:
        """Gather them from an open file and its registry entry."""
        default = entry.weights if entry is not None else None
        copy = reader.metadata.get("weights")
        available: Copy | None = "ema" if copy == "ema" else "raw" if copy == "raw" else default
        return cls(default, reader.weights, available, reader.optimizer, reader.left_out)


def wanted_copy(weights: Weights, entry: Entry | None) -> Weights:
    """Which copy to open a file for: as asked, else the one that its entry's figures belong to."""
    return (entry.weights if entry is not None and weights == "auto" else None) or weights


@dataclass(frozen=True)
class Ignored:
    """A tensor of the file that is left out, by which rule and why."""

    name: str
    rule: str
    reason: str

    @property
    def why(self) -> str:
        """The rule, and its reason."""
        return f"{self.rule}: {self.reason}"


@dataclass(frozen=True)
class Match:
    """A file's tensors set against an architecture's."""

    recognition: Recognition
    weights: Copy | None  # which copy is taken where the file holds both, None where it holds one
    sources: Mapping[str, str]  # canonical name → name in the file
    ignored: tuple[Ignored, ...]
    unexpected: tuple[str, ...]  # tensors of the file that nothing explains
    missing: tuple[Binding, ...]
    wrong_shape: tuple[tuple[Binding, TensorSpec], ...]
    unread: Mapping[str, str] = field(default_factory=dict)  # cannot be read, and no rule leaves them out
    around: tuple[str, ...] = ()  # parts of a larger model that are left out: a detector's neck and heads

    @property
    def lacks_bn_statistics(self) -> bool:
        """Whether every BatchNorm moving statistic is missing, as in MOAT's first uploads."""
        statistics = [b for b in self.recognition.table.bindings if b.part == "bn_statistics"]
        missing = {b.canonical for b in self.missing}
        return bool(statistics) and all(b.canonical in missing for b in statistics)


def match(
    specs: Mapping[str, TensorSpec],
    recognition: Recognition,
    *,
    weights: Weights = "auto",
    known: FileFacts | None = None,
    head: bool = True,
) -> Match:
    """Set a file's tensors against the architecture it was recognised as.

    ``weights`` says which copy to take where a file holds both: ``auto`` takes the entry's, else the
    averages. Without ``head``, or where the file has none, what is around a backbone is left out. Raises
    UsageError when the copy asked for is not there, ConversionError when only some parameters have it.
    """
    table = recognition.table
    known = known or FileFacts()
    names = {b.canonical: _name_in_file(b, specs) for b in table.bindings}
    seconds = _second_copies(specs, recognition, names)
    if weights == "ema" and not seconds and "ema" not in (known.selected_copy, known.available_copy):
        _refuse_averages_of_optimizer(specs, table)
    copy = _choose_copy(recognition, bool(seconds), weights, known)
    naming = table.layout.second_copy
    left_out: dict[str, Ignore] = {}
    if seconds and naming is not None and naming.holds == copy:
        _require_whole(recognition, names, seconds)
        left_out = {name: _NOT_CHOSEN[naming.plain] for c in seconds if (name := names[c]) is not None}
        names = {**names, **seconds}
    elif naming is not None:
        others = (naming.of(names[b.canonical] or b.external) for b in table.bindings)
        left_out = dict.fromkeys(others, _NOT_CHOSEN[naming.holds])
    sources = {canonical: name for canonical, name in names.items() if name is not None}
    found = [(b, specs[sources[b.canonical]]) for b in table.bindings if b.canonical in sources]
    headless = recognition.structure.num_classes is None or not head
    rest = _Rest(table, table.layout.around if headless else (), left_out, known)
    used = set(sources.values())
    for name in (*specs, *known.unread):
        if name not in used:
            rest.add(name)
    return Match(
        recognition,
        copy,
        sources,
        tuple(rest.ignored),
        tuple(rest.unexpected),
        missing=tuple(b for b in table.bindings if b.canonical not in sources and b.part != "counter"),
        wrong_shape=tuple((b, spec) for b, spec in found if spec.shape != b.external_shape),
        unread=rest.unread,
        around=tuple(rest.parts),
    )


@dataclass
class _Rest:
    """What of a file is not used, sorted by the rule that leaves it out."""

    table: Table
    around: tuple[Ignore, ...]
    left_out: Mapping[str, Ignore]
    known: FileFacts
    ignored: list[Ignored] = field(default_factory=list)
    parts: dict[str, None] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Sort one tensor in."""
        rule = self.left_out.get(name) or next(
            (
                rule
                for rule in (*self.table.layout.ignores, *self.around)
                if rule.matches(name, self.table.by_external)
            ),
            OPTIMIZER if name in self.known.optimizer else None,
        )
        if rule is not None:
            self.ignored.append(Ignored(name, rule.name_of(name), rule.reason))
            if rule in self.around:
                self.parts[self.ignored[-1].rule] = None
        elif name in self.known.unread:
            self.unread[name] = self.known.unread[name]
        else:
            self.unexpected.append(name)


def refuse_another(reader: Reader, entry: Entry) -> bool | None:
    """Refuse a file of another architecture than its entry's; says whether BatchNorm's statistics are in it.

    None where the architecture has no such statistics, or there is no model code for it. Tensors beyond those
    of the architecture are accepted here. The ConversionError does not name the file.
    """
    if entry.serves == "container" or entry.family not in families():
        return None
    if entry.variant not in get_family(entry.family).variants:
        return None
    found = recognise(reader.specs)
    if found is None:
        names = ", ".join(list(reader.specs)[:3]) or "none"
        raise ConversionError(f"{counted(len(reader.specs), 'tensor')} ({names} …), none of {entry.variant}")
    if found.variant != entry.variant:
        raise ConversionError(f"a checkpoint of {found.variant}, not of {entry.variant}")
    if found.layout != entry.layout and entry.layout in found.family.layouts:
        raise ConversionError(f"names of the layout {found.layout}, not of {entry.layout}")
    has, published = found.structure, entry.exact_parameters or entry.published_top1
    if entry.pos_emb not in (None, has.pos_emb):
        with_or_without = "with" if has.pos_emb else "without"
        raise ConversionError(f"{entry.variant} {with_or_without} position embedding, unlike {entry.id}")
    classes = None if entry.serves == "backbone" else entry.num_classes or Structure().num_classes
    if published and has.num_classes != classes:
        raise ConversionError(
            f"{entry.variant} with {_head(has.num_classes)}, but {entry.id} has {_head(classes)}"
        )
    try:
        matched = match(reader.specs, found, known=FileFacts.of(reader, entry))
    except ConversionError:  # only some parameters have moving averages: the others tell
        matched = match(reader.specs, found, weights="raw")
    statistics = [row for row in found.table.bindings if row.part == "bn_statistics"]
    absent = [row.external for row in matched.missing if row.part != "bn_statistics"]
    absent += [row.external for row, _ in matched.wrong_shape]
    if absent:
        count = "a tensor" if len(absent) == 1 else counted(len(absent), "tensor")
        raise ConversionError(f"{entry.variant}, but {count} missing or of another shape: {absent[0]}")
    return not matched.lacks_bn_statistics if statistics else None


def _head(classes: int | None) -> str:
    return "no classifier" if classes is None else f"a head of {counted(classes, 'class')}"


def _choose_copy(recognition: Recognition, both: bool, weights: Weights, known: FileFacts) -> Copy | None:
    """Which copy is taken of a file that holds both; None where it holds one."""
    if both:
        return (known.default_copy or "ema") if weights == "auto" else weights
    if known.selected_copy is not None:
        return known.selected_copy
    if weights in ("auto", known.available_copy):
        return None
    if weights == "raw" and known.available_copy is None:
        return None  # a file that says nothing of averages holds plain weights
    other = _IN_WORDS[known.available_copy] if known.available_copy else f"no {_IN_WORDS['ema']}"
    raise UsageError(
        f"this file holds {other}" + (" only" if known.available_copy else ""),
        hint=f"leave --weights out, or use {known.available_copy or 'raw'}",
    )


def _refuse_averages_of_optimizer(specs: Mapping[str, TensorSpec], table: Table) -> None:
    """Raise UsageError where the averages asked for are an optimizer's, whose names do not say what of."""
    rules = [rule for rule in table.layout.ignores if rule.name == OPTIMIZER_AVERAGES]
    kept = next((n for n in specs for rule in rules if rule.matches(n, table.by_external)), None)
    if kept is not None:
        raise UsageError(
            f"the moving averages of this file are the optimizer's own ({kept} …), which are not read",
            hint="put them into the model by optimizer.finalize_variable_values(model.trainable_variables), "
            "and save it again",
        )


def _name_in_file(binding: Binding, specs: Mapping[str, TensorSpec]) -> str | None:
    return next((name for name in (binding.external, *binding.aliases) if name in specs), None)


def _second_copies(
    specs: Mapping[str, TensorSpec], recognition: Recognition, names: Mapping[str, str | None]
) -> dict[str, str]:
    """Canonical name → name of its second copy in the file, for those that have one."""
    naming = recognition.table.layout.second_copy
    if naming is None:
        return {}
    seconds = {b.canonical: naming.of(names[b.canonical] or b.external) for b in recognition.table.bindings}
    return {canonical: second for canonical, second in seconds.items() if second in specs}


def _require_whole(
    recognition: Recognition, names: Mapping[str, str | None], seconds: Mapping[str, str]
) -> None:
    """Refuse to mix two copies of the weights in one model."""
    naming = recognition.table.layout.second_copy
    lacking = [
        b.external
        for b in recognition.table.bindings
        if b.trainable and b.canonical not in seconds and names[b.canonical] is not None
    ]
    if lacking and naming is not None:
        what = "moving average" if naming.holds == "ema" else "raw copy"
        raise ConversionError(
            f"{counted(len(lacking), 'parameter', 'have')} no {what} while others have one ({lacking[0]} …)",
            hint=f"--weights {naming.plain} takes the {_IN_WORDS[naming.plain]}",
        )
