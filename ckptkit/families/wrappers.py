"""A checkpoint under the names that its model has, without what wrappers of the model put into them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptkit.base.errors import ConversionError, NotFoundError, command
from ckptkit.families.base import recognise, resembles_a_model
from ckptkit.formats.base import AVERAGING_COUNTERS, Reader, Weights
from ckptkit.formats.detect import open_reader
from ckptkit.formats.readers import Renamed

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
        if strip_prefix and reader.format == "torch":
            reader = _stripped(reader, _MODULE, where_it_fits=True)
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
    # With or without its dot; and behind module., which is not shown where every name has it.
    for found in (prefix, f"{prefix}.", f"{_MODULE}{prefix}", f"{_MODULE}{prefix}."):
        if prefix and all(_begins(name, found) for name in inner):
            renamed = {name: name.removeprefix(found) for name in names}
            return Renamed(reader, renamed, f"the prefix {found!r} of every name is left out")
    if where_it_fits or not prefix:
        return reader
    lacking = [name for name in inner if not _begins(name, prefix)]
    shown = ", ".join(lacking[:3]) + (" …" if len(lacking) > 3 else "")
    raise ConversionError(
        f"{reader.path}: {len(lacking)} of {len(inner)} names do not begin with {prefix!r} ({shown})",
        hint=f"A file of --rules can rename and ignore tensors one by one. {command('inspect', reader.path)}",
    )


def _begins(name: str, prefix: str) -> bool:
    """Whether a prefix can be taken off: what remains is a name, which a dot does not begin."""
    return name.startswith(prefix) and name[len(prefix) :] != "" and name[len(prefix)] != "."


def _unwrapped(reader: Reader) -> Reader:
    """Give the names of a known model, where they are behind wrappers' prefixes; else the reader as it is."""
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
    """A name without what wrappers put in, wherever it stands."""
    return ".".join(part for part in name.split(".") if part not in _AROUND) or name


def _tells_apart(names: Mapping[str, str]) -> bool:
    return len(set(names.values())) == len(names)


def _note(removed: Sequence[str], apart: int) -> str:
    wrappers = ", ".join(f"'{part}.'" for part in removed)
    but = f", but for {apart} without such a prefix" if apart else ""
    return f"left out of the names, as wrappers of the model: {wrappers}{but}"
