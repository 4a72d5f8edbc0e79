"""Which table of a PyTorch file is the state dict, and which copy of the weights it holds.

Training code saves the weights at the top of a file, or under keys of its own beside the optimizer's state,
often twice: as trained, and as moving averages. The words of the keys and the names
of the tensors tell places and copies apart; where that leaves a choice, the user is asked.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

from ckptkit.base.errors import FormatError, NotFoundError, UsageError, listed
from ckptkit.formats.base import AVERAGING_COUNTERS, Copy, Weights
from ckptkit.formats.pickle_machine import Inert
from ckptkit.formats.pickle_names import would_call
from ckptkit.formats.torch_modules import SCRIPTED
from ckptkit.formats.torch_pickle import describe, is_array, is_tensor

Table = dict[object, object]

_MODULE = "module."
_GENERIC = frozenset(
    {"checkpoint", "ckpt", "current", "dict", "model", "module", "net", "network", "parameters", "params"}
    | {"raw", "state", "weight", "weights"}
)
"""Words of a key that say no more than that weights are there."""

_AVERAGES = frozenset(["average", "averaged", "averages", "averaging", "avg", "ema", "moving", "swa"])
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_OTHER_STATE = frozenset(
    {"callbacks", "optim", "optimizer", "optimizers", "optims", "rng", "scaler", "scheduler", "schedulers"}
)
_SLOTS = frozenset({"exp_avg", "exp_avg_sq", "momentum_buffer", "param_groups"})
"""Keys of a table that is an optimizer's."""

_USUAL = ("state_dict", "model", "module")
"""Where the weights are usually, first choice first."""

_SETTLED = frozenset({("state_dict", "state_dict_ema"), ("model", "model_ema")})
"""Weights and averages as timm saves them: its published figures are those of the averages."""

_MAX_DEPTH = 8
_MAX_ITEMS = 1000
_MAX_STATE_DICTS = 1000
_MAX_LISTED = 20
_MAX_COMPARED = 16
_MAX_PATH = 1000
"""Characters of the keys that lead to a state dict; words are looked for in no more of a key."""


@dataclass(frozen=True)
class StateDict:
    """The state dict to read."""

    name: str  # the keys that lead to it, joined by dots; ``""`` at the top
    table: Table
    names: tuple[str, ...]  # every state dict of the file
    # which state dict holds which copy of these weights, where that is known
    copies: Mapping[Copy, str] = field(default_factory=dict)

    @property
    def copy(self) -> Copy | None:
        """Which copy of the weights it is, where that is known."""
        return next((copy for copy, name in self.copies.items() if name == self.name), None)


def find_state_dict(
    path: Path,
    root: object,
    *,
    wanted: str | None = None,
    weights: Weights | None = None,
    kind: str = "",
) -> StateDict:
    """Find the requested state dict, or the only one there is.

    ``kind`` says what a file is that torch.save did not write.
    """
    found = _candidates(path, root, kind)
    pairs = _pairs(root, found)
    if wanted is not None:
        name, table = _named(path, root, found, wanted)
    else:
        name = _chosen(path, found, pairs, weights)
        table = found[name]
    copies = next((pair.copies for pair in pairs if name in pair.copies.values()), {})
    return StateDict(name, table, tuple(found), copies)


# -- places --------------------------------------------------------------------------------------------------


def _candidates(path: Path, root: object, kind: str) -> dict[str, Table]:
    """Every table that can be a model's weights, by its keys; the usual places first.

    Arrays of numpy count where there are no tensors; beside tensors they are constants.
    """
    places: list[tuple[tuple[object, ...], Table]] = []
    for counts in (is_tensor, is_array):
        walk = _Walk(counts)
        walk.look(root, (), 0)
        if places := walk.found:
            break
    if not places:
        raise _no_state_dict(path, root, kind)
    if len(places) > _MAX_STATE_DICTS:
        raise FormatError(path, f"{len(places)} tables of tensors, more than {_MAX_STATE_DICTS}")
    found: dict[str, Table] = {}
    for keys, table in sorted(places, key=lambda place: len(place[0])):
        found.setdefault(_joined(path, keys), table)  # {"a.b": …} comes before {"a": {"b": …}}
    return {name: found[name] for name in sorted(found, key=_rank)}


def _joined(path: Path, keys: tuple[object, ...]) -> str:
    """Name of the state dict that keys lead to."""
    if sum(len(key) for key in keys if isinstance(key, (str, bytes))) > _MAX_PATH:
        raise FormatError(path, f"a state dict under keys of more than {_MAX_PATH} characters")
    return ".".join(map(str, keys))


def _rank(name: str) -> int:
    plain = next((plain for plain, averages in _SETTLED if name in (plain, averages)), name)
    return 2 * _USUAL.index(plain) + (name != plain) if plain in _USUAL else 2 * len(_USUAL)


class _Walk:
    """Looks through nested tables and lists, each once, for those that hold tensors.

    Where a table and one inside it both hold tensors, the one with more of them is meant, or the inner one if
    its key says that weights are there: a loss beside a state dict is not one, and neither is a table
    of some layer's extra state inside one.
    """

    def __init__(self, counts: Callable[[object], bool]) -> None:
        self.found: list[tuple[tuple[object, ...], Table]] = []
        self._counts = counts
        self._seen: set[int] = set()

    def look(self, value: object, keys: tuple[object, ...], depth: int) -> int:
        """Look into one value; returns the number of tensors of the largest table found there."""
        if not isinstance(value, (dict, list, tuple)) or depth > _MAX_DEPTH or id(value) in self._seen:
            return 0
        self._seen.add(id(value))
        if not isinstance(value, dict):
            items = enumerate(value[:_MAX_ITEMS])
            return max((self.look(inner, (*keys, i), depth + 1) for i, inner in items), default=0)
        if not _SLOTS.isdisjoint(value):
            return 0
        own = sum(self._counts(v) for k, v in value.items() if isinstance(k, str) or not depth)
        before, largest, named = len(self.found), 0, False
        for key, inner in value.items():
            if isinstance(inner, (dict, list, tuple)) and not _OTHER_STATE.intersection(_words(key)):
                inside = self.look(inner, (*keys, key), depth + 1)
                largest = max(largest, inside)
                named = named or (inside > 0 and isinstance(key, str) and _role(key) == ((), False))
        if own and own >= largest and not named:
            self.found[before:] = [(keys, value)]
            return own
        return largest


def _words(key: object) -> tuple[str, ...]:
    return _words_of(key[:_MAX_PATH]) if isinstance(key, str) else ()


@lru_cache(maxsize=1024)
def _words_of(text: str) -> tuple[str, ...]:
    """The words of a key, which many tables may have."""
    return tuple(word.lower() for word in _WORD.findall(text))


def _no_state_dict(path: Path, root: object, kind: str) -> FormatError:
    hint = "save model.state_dict() with torch.save"
    called = next(_functions(root), None)
    if called is not None:
        loader = "pickle.load" if kind else "torch.load"
        what = f"is a pickle that would call {called} when loaded by {loader}"
        return FormatError(path, what, hint="ckptkit does not call it")
    if isinstance(root, Inert) and root.name.startswith(SCRIPTED):
        what = "is a TorchScript archive whose modules have no parameters: in a frozen one its code has them"
        return FormatError(path, what, hint="save the model before torch.jit.freeze makes them constants")
    if isinstance(root, Inert):
        return FormatError(
            path, f"is a whole pickled object ({describe(root, 120)}), not a state dict", hint=hint
        )
    what = f"is {kind} without tensors" if kind else "holds no state dict"
    return FormatError(path, f"{what}, only {describe(root, 120)}", hint=hint)


def _functions(value: object, depth: int = 0) -> Iterator[str]:
    """Names of functions whose results are where a state dict or a tensor should be."""
    if isinstance(value, Inert) and would_call(value.name):
        yield value.name
    if isinstance(value, (dict, list, tuple)) and depth < 3:
        for inner in islice(value.values() if isinstance(value, dict) else value, _MAX_ITEMS):
            yield from _functions(inner, depth + 1)


def _named(path: Path, root: object, found: Mapping[str, Table], wanted: str) -> tuple[str, Table]:
    """The table that a path of keys leads to, or the only state dict beneath it."""
    for table in _at(root, wanted):
        if isinstance(table, dict) and any(is_tensor(v) or is_array(v) for v in table.values()):
            return wanted, table
    beneath = [name for name in found if name.startswith(wanted + ".")]
    if len(beneath) == 1:
        return beneath[0], found[beneath[0]]
    if beneath:
        raise _ask(path, beneath)
    names = listed((repr(name) if name else "one at the top" for name in found), _MAX_LISTED)
    first = next(iter(found))
    hint = _choice(first) if len(found) > 1 else "leave --state-dict out"
    raise NotFoundError(f"{path}: no state dict {wanted!r}, it has {names}", hint=hint)


def _at(value: object, wanted: str) -> Iterator[object]:
    """What a path of keys leads to; where keys have dots themselves, the longest that fits goes first."""
    if not wanted:
        yield value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    keys = {str(key): inner for key, inner in items if f"{wanted}.".startswith(f"{key}.")}
    for key in sorted(keys, key=len, reverse=True):
        yield from _at(keys[key], wanted[len(key) + 1 :])


# -- copies --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """Two state dicts that are copies of the same weights."""

    plain: str  # the one whose key does not speak of averages
    copies: Mapping[Copy, str]
    settled: bool = False  # whether it is known which of them the published figures belong to: the averages


def _role(name: str) -> tuple[tuple[str, ...], bool]:
    """Whose weights a key speaks of, and whether it calls them averages.

    Examples
    --------
    >>> [_role(name) for name in ("state_dict", "generator_ema", "modelEMA", "student")]
    [((), False), (('generator',), True), ((), True), (('student',), False)]
    """
    rest, averaged = [], False
    for word in _words(name):
        glued = {word.removeprefix("ema"), word.removesuffix("ema")} - {word}
        if word in _AVERAGES or glued & _GENERIC:
            averaged = True
        elif word not in _GENERIC:
            rest.append(word)
    return tuple(rest), averaged


def _pairs(root: object, found: Mapping[str, Table]) -> list[_Pair]:
    """Weights and averages: keys that differ in the word for averages alone, tensors of the same names."""
    if len(found) > _MAX_COMPARED:
        return []
    roles = {name: _role(name) for name in found}
    names = {name: _tensor_names(table) for name, table in found.items()}
    pairs = list(_swapped(root, found))
    taken = {name for pair in pairs for name in pair.copies.values()}
    for averages in (name for name in found if roles[name][1] and name not in taken):
        alike = [
            name
            for name in found
            if not roles[name][1] and name not in taken and _overlap(names[name], names[averages])
        ]
        whose = roles[averages][0]
        plain = next((name for name in alike if roles[name][0] == whose), None)
        if plain is None and not whose and len(alike) == 1:
            plain = alike[0]
        if plain is not None:
            taken |= {plain, averages}
            pairs.append(_Pair(plain, {"raw": plain, "ema": averages}, settled=(plain, averages) in _SETTLED))
    return pairs


def _swapped(root: object, found: Mapping[str, Table]) -> Iterator[_Pair]:
    """Copies whose values the training code swaps before it saves: ``state_dict`` holds the averages then.

    mmengine (``before_save_checkpoint`` in mmengine/hooks/ema_hook.py): ``ema_state_dict`` is the averaged
    model's, with a counter ``steps`` beside ``module.…``. Lightning (``on_save_checkpoint`` in
    lightning/pytorch/callbacks/weight_averaging.py) keeps its own state beside both copies.
    """
    table = root if isinstance(root, dict) else {}
    meta = table.get("meta")
    by_mmengine = "steps" in found.get("ema_state_dict", {}) or (
        isinstance(meta, dict) and "mmengine_version" in meta
    )
    by_lightning = "averaging_state" in table
    for raw, is_swapped in (("ema_state_dict", by_mmengine), ("current_model_state", by_lightning)):
        if is_swapped and {"state_dict", raw} <= found.keys():
            yield _Pair("state_dict", {"raw": raw, "ema": "state_dict"}, settled=True)


def _tensor_names(table: Table) -> set[str]:
    """Names of a table's tensors, less what wrappers of models add to them."""
    return {
        key.removeprefix(_MODULE)
        for key, value in table.items()
        if isinstance(key, str) and key not in AVERAGING_COUNTERS and (is_tensor(value) or is_array(value))
    }


def _overlap(one: set[str], other: set[str]) -> bool:
    """Whether two models are the same: averages may lack the buffers."""
    return 2 * len(one & other) > len(one | other)


def _chosen(path: Path, found: Mapping[str, Table], pairs: list[_Pair], weights: Weights | None) -> str:
    beside = {name for pair in pairs for name in pair.copies.values() if name != pair.plain}
    main = _main({name: table for name, table in found.items() if name not in beside})
    if main is None:
        if weights == "ema" and len(pairs) == 1:
            return pairs[0].copies["ema"]
        raise _ask(path, list(found))
    pair = next((pair for pair in pairs if pair.plain == main), None)
    if pair is None:
        if weights == "raw" and _role(main)[1]:
            raise UsageError(f"{path} holds moving averages (EMA) only ({main})", hint="leave --weights out")
        return main
    if weights == "auto" and not pair.settled:
        raise _ask(path, list(pair.copies.values()), or_weights=True)
    return main if weights is None else pair.copies["ema" if weights == "auto" else weights]


def _main(found: Mapping[str, Table]) -> str | None:
    """The only state dict that can be meant; None where nothing tells."""
    plain = [name for name in found if _role(name) == ((), False)]
    if len(found) > 1 and (not plain or (len(plain) > 1 and plain[0] not in _USUAL)):
        return None
    first = plain[0] if plain else next(iter(found))
    names = _tensor_names(found[first])
    rivals = (name for name in found if name != first)
    return None if any(_overlap(names, _tensor_names(found[name])) for name in rivals) else first


# -- questions -----------------------------------------------------------------------------------------------


class AmbiguousError(FormatError):
    """A sound file that holds several state dicts, and nothing says which one is meant."""


def _ask(path: Path, names: list[str], *, or_weights: bool = False) -> FormatError:
    return AmbiguousError(
        path,
        f"holds {len(names)} state dicts: {listed(names, _MAX_LISTED)}",
        hint=_choice(names[0]) + (", or --weights ema or raw" if or_weights else ""),
    )


def _choice(name: str) -> str:
    return f"choose one with --state-dict {shlex.quote(name)}"
