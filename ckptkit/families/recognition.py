"""Which model a file is of, by its tensors' names and shapes, and under which names it has them.

A checkpoint is opened under the names that its model has, without what wrappers of the model put into them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptkit.base.errors import ConversionError, NotFoundError, UnknownModelError, command
from ckptkit.base.tensors import TensorSpec
from ckptkit.base.text import counted
from ckptkit.families.base import Family, Structure, family_groups, family_of_variant
from ckptkit.formats.base import AVERAGING_COUNTERS, Reader, Weights
from ckptkit.formats.builtin import format_of
from ckptkit.formats.detect import open_reader
from ckptkit.formats.readers import Renamed
from ckptkit.rules.language import Definition, Layout, Table, expand


@dataclass(frozen=True)
class Recognition:
    """What a file turned out to be."""

    family: Family
    variant: str
    structure: Structure
    table: Table  # the layout's exact list of tensors for this variant

    @property
    def layout(self) -> str:
        """Name of the layout."""
        return self.table.layout.name


def recognise(
    specs: Mapping[str, TensorSpec], *, variant: str | None = None, layout: str | None = None
) -> Recognition | None:
    """Tell family, variant and layout of a file from its tensors' names and shapes.

    ``variant`` and ``layout`` narrow the search. None when fewer than half of the tensors that tell variants
    apart are there. Plug-ins are looked at where no built-in family fits.
    """
    return next(filter(None, (_best(group, specs, variant, layout) for group in family_groups())), None)


def _best(
    families: Iterable[Family], specs: Mapping[str, TensorSpec], variant: str | None, layout: str | None
) -> Recognition | None:
    candidates = [
        (family, layout_name, candidate)
        for family in families
        for layout_name in family.layouts
        for candidate in family.variants
        if layout in (None, layout_name) and variant in (None, candidate)
    ]
    # The first tensor alone leaves two or three candidates; where it is the one that is damaged, all count.
    likely = [c for c in candidates if _has_first_tensor(*c, specs)] or candidates
    best: tuple[float, Family, str, str, Structure] | None = None
    for family, layout_name, candidate in likely:
        score, structure = _resemblance(family, layout_name, candidate, specs)
        if best is None or score > best[0]:
            best = (score, family, layout_name, candidate, structure)
    if best is None or best[0] <= 0:
        return None
    _, family, layout_name, candidate, structure = best
    if structure.pos_emb:
        structure = replace(structure, table_sizes=family.read_table_sizes(layout_name, candidate, specs))
    return Recognition(family, candidate, structure, family.table(layout_name, candidate, structure))


def resembles_a_model(specs: Mapping[str, TensorSpec]) -> bool:
    """Whether the first tensor of any model known here is there, by name and shape: a quick look."""
    return any(
        _has_first_tensor(family, layout, variant, specs)
        for group in family_groups()
        for family in group
        for layout in family.layouts
        for variant in family.variants
    )


def _has_first_tensor(family: Family, layout: str, variant: str, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether the architecture's first tensor is there, with the variant's shape."""
    first = family.definitions[:1]
    (binding,) = expand(family.layouts[layout], first, family.sites(variant, Structure())).bindings
    return any(
        name in specs and specs[name].shape == binding.external_shape
        for name in (binding.external, *binding.aliases)
    )


def _resemblance(
    family: Family, layout: str, variant: str, specs: Mapping[str, TensorSpec]
) -> tuple[float, Structure]:
    """Share of a variant's telling tensors that the file has, less the share it lacks.

    One tensor of rank two or more for each set of sites and op, at every site, is enough to tell all
    variants and layouts apart, and several times cheaper than the whole table.
    """
    rules = family.layouts[layout]
    telling: dict[tuple[str, str], Definition] = {}
    for definition in family.definitions:
        if len(definition.shape) > 1:
            telling.setdefault((definition.sites, rules.by_canonical[definition.name].op), definition)
    table = expand(rules, telling.values(), family.sites(variant, Structure()))
    pos_emb = False
    found = missing = 0
    for binding in table.bindings:
        spec = next((specs[n] for n in (binding.external, *binding.aliases) if n in specs), None)
        if binding.part == "position":
            pos_emb = pos_emb or spec is not None
        elif spec is not None and spec.shape == binding.external_shape:
            found += 1
        elif binding.part != "head":
            missing += 1
    structure = Structure(pos_emb=pos_emb, num_classes=_num_classes(family, rules, specs))
    return (found - missing) / max(1, found + missing) + found * 1e-6, structure


def _num_classes(family: Family, layout: Layout, specs: Mapping[str, TensorSpec]) -> int | None:
    """Outputs of the head in the file: the length of the head's bias, None where there is none."""
    external = layout.by_canonical["head.bias"].external
    if external not in specs:
        return None
    return math.prod(specs[external].shape)


def require_recognition(
    path: object, specs: Mapping[str, TensorSpec], *, variant: str | None = None, layout: str | None = None
) -> Recognition:
    """Recognise a file, or refuse it: it belongs to no known family, or is unlike ``variant``."""
    if variant is not None:
        family_of_variant(variant)
    found = recognise(specs, variant=variant, layout=layout)
    if found is None:
        sample = ", ".join(list(specs)[:3]) or "none"
        are = "is" if len(specs) == 1 else "are"
        asked = f"{are} unlike {variant}" if variant else f"{are} of no family known here"
        raise (ConversionError if variant else UnknownModelError)(
            f"{path}: {counted(len(specs), 'tensor')} ({sample} …) {asked}",
            hint=f"'ckptkit list' shows what is supported. {command('inspect', path)}",
        )
    return found


# -- names without what wrappers of a model put into them ----------------------------------------------------

_MODULE = "module."
_AROUND = frozenset(
    {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
"""Parts of names that wrappers put in, wherever they stand: data parallel and averaged models, torch.compile,
Lightning Fabric, FSDP, activation checkpointing."""

_MODELS = frozenset({"model", "net", "network", "backbone"})
"""What training modules, and detectors, call the model that they hold beside others."""

_MAX_DEPTH = 5


def open_checkpoint(
    path: Path,
    *,
    state_dict: str | None = None,
    weights: Weights | None = None,
    strip_prefix: Sequence[str] = (),
    where_it_fits: bool = False,
    unwrap: bool = True,
) -> Reader:
    """Open a checkpoint of any format, less prefixes that are to go and those of a known model's wrappers."""
    options: dict[str, Any] = {"weights": weights, "as_saved": bool(strip_prefix)}
    try:
        reader = open_reader(path, state_dict=state_dict, **options)
    except NotFoundError:
        if not where_it_fits or state_dict is None:
            raise
        reader = open_reader(path, **options)
    try:
        for prefix in strip_prefix:
            reader = _stripped(reader, prefix, where_it_fits=where_it_fits)
        wrapper = format_of(reader.format).wrapper_prefix
        if strip_prefix and wrapper:
            reader = _stripped(reader, wrapper, where_it_fits=True)
        return _unwrapped(reader) if unwrap else reader
    except BaseException:
        reader.close()
        raise


def _names(reader: Reader) -> list[str]:
    return [*reader.specs, *reader.left_out]


def _stripped(reader: Reader, prefix: str, *, where_it_fits: bool) -> Reader:
    """Take a prefix off every name, but those of an averaged model's counters."""
    names = _names(reader)
    inner = [name for name in names if name not in AVERAGING_COUNTERS]
    # With or without its dot; and after module., which is not shown where every name has it.
    for found in (prefix, f"{prefix}.", f"{_MODULE}{prefix}", f"{_MODULE}{prefix}."):
        if prefix and all(_begins(name, found) for name in inner):
            renamed = {name: name.removeprefix(found) for name in names}
            return Renamed(reader, renamed, f"the prefix {found!r} of every name is left out")
    if where_it_fits or not prefix:
        return reader
    lacking = [name for name in inner if not _begins(name, prefix)]
    shown = ", ".join(lacking[:3]) + (" …" if len(lacking) > 3 else "")
    raise ConversionError(
        f"{reader.path}: {counted(len(lacking), 'name', 'do')} not begin with {prefix!r}, "
        f"of {len(inner)} ({shown})",
        hint=f"A file of --rules can rename and ignore tensors one by one. {command('inspect', reader.path)}",
    )


def _begins(name: str, prefix: str) -> bool:
    """Whether a prefix can be taken off: what remains is a name, which a dot does not begin."""
    return name.startswith(prefix) and name[len(prefix) :] != "" and name[len(prefix)] != "."


def _unwrapped(reader: Reader) -> Reader:
    """Take wrappers' prefixes off the names of a known model; any other reader is returned unchanged."""
    for names, removed, apart in _without_wrappers(_names(reader)):
        if removed[-1] not in _AROUND and resembles_a_model(reader.specs):
            return reader
        specs = {names[own]: spec for own, spec in reader.specs.items()}
        if resembles_a_model(specs) and recognise(specs) is not None:
            return Renamed(reader, names, _note(removed, apart))
    return reader


def _without_wrappers(names: Sequence[str]) -> Iterator[tuple[dict[str, str], list[str], int]]:
    """What names may be without wrappers, the least change first; what goes, and how many do not have it."""
    now = {name: _inner(name) for name in names}
    removed = list(dict.fromkeys(part for name in names for part in name.split(".") if part in _AROUND))
    if removed and _tells_apart(now):
        yield now, removed, 0
    else:
        now, removed = {name: name for name in names}, []
    beside = {name for name in names if name in AVERAGING_COUNTERS}
    for _ in range(_MAX_DEPTH):
        fronts = Counter(new.partition(".")[0] for own, new in now.items() if own not in beside)
        if not fronts:
            return
        front = fronts.most_common(1)[0][0]
        outside = {own for own, new in now.items() if not new.startswith(f"{front}.")}
        if outside - beside and front not in _MODELS:
            return
        beside |= outside
        now = {own: new if own in beside else new.removeprefix(f"{front}.") for own, new in now.items()}
        removed.append(front)
        if not _tells_apart(now):
            return
        yield now, removed, len(beside)


def _inner(name: str) -> str:
    """A name without the parts that wrappers insert anywhere in it."""
    return ".".join(part for part in name.split(".") if part not in _AROUND) or name


def _tells_apart(names: Mapping[str, str]) -> bool:
    return len(set(names.values())) == len(names)


def _note(removed: Sequence[str], apart: int) -> str:
    wrappers = ", ".join(f"'{part}.'" for part in removed)
    but = f", but for {apart} without such a prefix" if apart else ""
    return f"left out of the names, as wrappers of the model: {wrappers}{but}"
