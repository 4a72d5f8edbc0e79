"""Whole modules, as ``torch.save(model)`` and TorchScript pickle them: their state dicts, not their code.

A pickled module is an object with tables ``_parameters``, ``_buffers`` and ``_modules``
(torch/nn/modules/module.py, ``_save_to_state_dict``). A scripted one has attributes, of which its class in
the archive's ``code/`` lists the parameters and the buffers (torch/csrc/jit/serialization/python_print.cpp).
Both are walked as the inert pickle machine leaves them: nothing is imported, compiled or called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from ckptkit.base.errors import FormatError
from ckptkit.formats.pickle_machine import Inert
from ckptkit.formats.torch_pickle import describe, is_array, is_tensor

SCRIPTED = "__torch__."
_GRAPH_MODULE = "torch.fx.graph_module.reduce_"
_PACKED = "torch.ScriptObject"
"""What a quantized layer has its weights in, of which its state dict has the object."""
_TYPED = "torch.jit._pickle."
"""What a scripted module's lists and tables are made by, with the value among the arguments."""
_TABLES = ("_parameters", "_buffers", "_modules")
_MAX_DEPTH, _MAX_MODULES, _MAX_NAMES = 100, 100_000, 32 << 20
_MAX_ATTRIBUTES = 2_000_000
_MAX_LOOK, _MAX_ITEMS, _MAX_OTHERS = 3, 1000, 1000
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[([^\]\n]*)\]\n  __buffers__ = \[([^\]\n]*)\]",
    re.MULTILINE,
)
_NAME = re.compile(r'"([^"\\\n]*)"')

Attributes = Mapping[str, tuple[str, ...]]
"""The parameters and the buffers of each scripted class, by its whole name."""


def script_attributes(sources: Iterable[tuple[str, str]]) -> Attributes:
    r"""Read modules' names and texts for what each class of theirs lists.

    Examples
    --------
    >>> text = 'class Linear(Module):\n  __parameters__ = ["weight", ]\n  __buffers__ = []\n'
    >>> script_attributes([("__torch__.a", text)])
    {'__torch__.a.Linear': ('weight',)}
    """
    return {
        f"{module}.{found[1]}": (*_NAME.findall(found[2]), *_NAME.findall(found[3]))
        for module, text in sources
        for found in _CLASS.finditer(text)
    }


@dataclass
class Modules:
    """What the modules in a file hold."""

    fault: Callable[[str], FormatError]
    attributes: Attributes = field(default_factory=dict)
    found: dict[str, None] = field(default_factory=dict)  # classes of the modules that were read
    others: dict[str, object] = field(default_factory=dict)  # tensors that are mere attributes
    _replaced: dict[int, object] = field(default_factory=dict)
    _looked_into: dict[int, bool] = field(default_factory=dict)
    _taken: set[int] = field(default_factory=set)
    _count: int = 0
    _names: int = 0
    _attributes: int = 0

    def replaced(self, value: object, depth: int = 0) -> object:
        """A value in whose tables and lists each module is replaced by its state dict."""
        if depth > _MAX_LOOK or not isinstance(value, (dict, list, tuple, Inert)):
            return value
        if id(value) not in self._replaced:
            self._replaced[id(value)] = self._made(value, depth)
        return self._replaced[id(value)]

    def _made(self, value: object, depth: int) -> object:
        if isinstance(value, Inert):
            if _tables(value) is None:
                return value
            table: dict[object, object] = {}
            self._walk(value, "", table, 0)
            if not table:
                return value
            self.found[value.name] = None
            return table
        if isinstance(value, dict):
            return {**value, **found} if (found := self._found(value.items(), depth)) else value
        assert isinstance(value, (list, tuple))
        found = self._found(enumerate(value[:_MAX_ITEMS]), depth)
        return [found.get(number, inner) for number, inner in enumerate(value)] if found else value

    def _found(self, items: Iterable[tuple[object, object]], depth: int) -> dict[object, object]:
        """Those of a table's or list's values that are replaced."""
        return {key: made for key, value in items if (made := self.replaced(value, depth + 1)) is not value}

    def _walk(self, module: Inert, prefix: str, table: dict[object, object], depth: int) -> None:
        """Put what ``module.state_dict()`` has into a table."""
        self._count += 1
        if depth > _MAX_DEPTH or self._count > _MAX_MODULES:
            raise self.fault(
                f"more than {_MAX_DEPTH if depth > _MAX_DEPTH else _MAX_MODULES:,} modules in each other"
            )
        state = _tables(module) or {}
        scripted = module.name.startswith(SCRIPTED)
        own, inner = self._scripted(module, state) if scripted else self._pickled(state)
        for name, value in own.items():
            self._put(table, prefix + name, value)
        for name, held in inner.items():
            if isinstance(held, Inert) and _tables(held) is not None:
                self._walk(held, f"{prefix}{name}.", table, depth + 1)
            elif held is not None:
                self._put(table, prefix + name, held)
        self._set_aside(state, {*_TABLES, *own, *inner}, prefix, table)

    def _set_aside(
        self,
        state: Mapping[object, object],
        known: Collection[str],
        prefix: str,
        table: dict[object, object],
    ) -> None:
        """Look at the attributes of a module that are not of its state dict, but may hold tensors."""
        self._attributes += len(state)
        if self._attributes > _MAX_ATTRIBUTES:
            raise self.fault(f"more than {_MAX_ATTRIBUTES:,} attributes of its modules")
        for key, mere in state.items():
            if not isinstance(key, str) or key in known:
                continue
            if isinstance(mere, Inert) and mere.name == _PACKED:
                self._put(table, prefix + key, mere)
            elif len(self.others) < _MAX_OTHERS and self._holds_tensors(mere):
                self.others[f"{prefix}{key}"] = mere

    def _holds_tensors(self, value: object, depth: int = 0) -> bool:
        """Whether an attribute is a tensor that was not taken, or a list or table with tensors or modules."""
        if is_tensor(value) or is_array(value):
            return id(value) not in self._taken
        if isinstance(value, Inert) and value.name.startswith(_TYPED):
            value = value.args
        elif isinstance(value, Inert):
            return depth > 0 and _tables(value) is not None
        if depth > _MAX_LOOK or not isinstance(value, (dict, list, tuple)):
            return False
        if id(value) not in self._looked_into:
            self._looked_into[id(value)] = False  # what it is in itself too
            inner = islice(value.values() if isinstance(value, dict) else value, _MAX_ITEMS)
            found = any(self._holds_tensors(one, depth + 1) for one in inner)
            self._looked_into[id(value)] = found
        return self._looked_into[id(value)]

    def _put(self, table: dict[object, object], name: str, value: object) -> None:
        self._names += len(name)
        if self._names > _MAX_NAMES:
            raise self.fault(f"more than {_MAX_NAMES:,} characters of names in its modules")
        if name in table:
            raise self.fault(f"two tensors are called {name[:200]!r}")
        table[name] = value
        self._taken.add(id(value))

    def _pickled(self, state: Mapping[object, object]) -> tuple[dict[str, object], dict[str, object]]:
        """The parameters and buffers of a module, and the modules in it."""
        passing = state.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, list) else []
        buffers = {name: value for name, value in _named(state, "_buffers").items() if name not in passing}
        own = {**_named(state, "_parameters"), **buffers}
        return {name: value for name, value in own.items() if value is not None}, _named(state, "_modules")

    def _scripted(
        self, module: Inert, state: Mapping[object, object]
    ) -> tuple[dict[str, object], dict[str, object]]:
        """The same of a scripted one, whose tensors all count where nothing lists them."""
        named = {name: value for name, value in state.items() if isinstance(name, str)}
        listed = self.attributes.get(module.name)
        if listed is None:
            listed = tuple(name for name, value in named.items() if is_tensor(value))
        own = {name: named[name] for name in listed if named.get(name) is not None}
        inner: dict[str, object] = {
            name: value
            for name, value in named.items()
            if name not in own and isinstance(value, Inert) and value.name.startswith(SCRIPTED)
        }
        return own, inner

    def notes(self) -> list[str]:
        """What was read, in a sentence."""
        if not self.found:
            return []
        scripted = all(name.startswith(SCRIPTED) for name in self.found)
        kind = "a TorchScript archive" if scripted else "a whole pickled module"
        names = describe(list(self.found)[:3], 200).strip("[]")
        return [f"{kind} ({names}): its parameters and buffers are read by name, and none of its code is run"]


def _tables(value: Inert) -> Mapping[object, object] | None:
    """The attributes of a module; None of other objects."""
    state = value.state
    if isinstance(state, tuple) and state and isinstance(state[0], dict):
        state = state[0]
    if state is None and value.name.startswith(_GRAPH_MODULE) and value.args:
        state = value.args[0]
    if not isinstance(state, dict):
        return None
    is_module = isinstance(state.get("_parameters"), dict) and isinstance(state.get("_modules"), dict)
    return state if is_module or value.name.startswith(SCRIPTED) else None


def _named(state: Mapping[object, object], key: str) -> dict[str, object]:
    table = state.get(key)
    return {k: v for k, v in table.items() if isinstance(k, str)} if isinstance(table, dict) else {}
