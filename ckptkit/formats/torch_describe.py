"""Plain words for what a PyTorch file holds beside its weights: epoch, arguments, metrics."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

from ckptkit.formats.restricted_pickle import GlobalName, Inert
from ckptkit.formats.torch_pickle import StorageRef, TensorRef, UnsupportedTensor

MAX_EXTRAS = 1000
_MAX_TEXT = 1000
_MAX_ITEMS = 200
_LOOK_AHEAD = 20
_MAX_DEPTH = 3


def describe(value: object, limit: int = _MAX_TEXT) -> str:
    r"""Say on one line what a value is, in at most about ``limit`` characters, fit for a terminal.

    Examples
    --------
    >>> describe({"lr": 0.001, "betas": (0.9, 0.999)})
    '{lr: 0.001, betas: (0.9, 0.999)}'
    >>> describe("a\x1b[31m")
    'a\\x1b[31m'
    """
    text = _Describer(limit + 1).text(value, _MAX_DEPTH)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe_extras(root: object, state_dicts: Iterable[str]) -> dict[str, str]:
    """Describe all that lies beside the state dicts; tables of plain values one level deep.

    Parameters
    ----------
    root : object
        What was unpickled.
    state_dicts : iterable of str
        Names to leave out; ``""`` says that the root itself is the state dict.
    """
    taken = set(state_dicts)
    if "" in taken or not isinstance(root, dict):
        return {}
    extras: dict[str, str] = {}
    for key, value in root.items():
        if key in taken or len(extras) >= MAX_EXTRAS:
            continue
        name = describe(key, 80)
        if (
            isinstance(value, dict)
            and value
            and not any(_is_bulky(v) for v in islice(value.values(), _MAX_ITEMS))
        ):
            extras.update(
                {f"{name}.{describe(k, 80)}": describe(v) for k, v in islice(value.items(), _MAX_ITEMS)}
            )
        else:
            extras[name] = describe(value)
    return extras


def _is_bulky(value: object) -> bool:
    return isinstance(value, (TensorRef, UnsupportedTensor, StorageRef)) or (
        isinstance(value, (dict, list)) and len(value) > _MAX_ITEMS
    )


def _plain(text: str) -> str:
    """Escape what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Describer:
    """Walks over a value, no deeper than some levels and until a number of characters is used up.

    Values may refer to each other many times over, so the budget is what ends the walk.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget

    def text(self, value: object, depth: int) -> str:
        if self._left <= 0:
            return "…"
        self._left -= 1
        if isinstance(value, (dict, list, tuple)):
            return self._container(value, depth)
        said = numpy_scalar(value) if isinstance(value, Inert) else self._leaf(value)
        if said is None:
            return self._call(value, depth)
        self._left -= len(said)
        return said

    def _leaf(self, value: object) -> str:
        if isinstance(value, str):
            return _plain(value[: max(self._left, 0) + 1])
        if isinstance(value, (bool, int, float, complex, type(None))):
            return f"{value:#x}" if isinstance(value, int) and abs(value) >= 1 << 64 else str(value)
        if isinstance(value, bytes):
            return f"{len(value)} bytes"
        if isinstance(value, TensorRef):
            return f"tensor of {value.dtype} {list(value.shape)}"
        if isinstance(value, UnsupportedTensor):
            return value.kind
        if isinstance(value, GlobalName):
            return _plain(value.name[: max(self._left, 0) + 1])
        return type(value).__name__

    def _container(self, value: dict[object, object] | list[object] | tuple[object, ...], depth: int) -> str:
        if isinstance(value, dict):
            if depth == 0 or any(_is_bulky(v) for v in islice(value.values(), _LOOK_AHEAD)):
                return f"table of {_values(len(value))}"
            return "{" + self._joined(((f"{self.text(k, 0)}: ", v) for k, v in value.items()), depth) + "}"
        if depth == 0 and value:
            return f"list of {_values(len(value))}"
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return opening + self._joined((("", v) for v in value), depth) + closing

    def _call(self, value: object, depth: int) -> str:
        assert isinstance(value, Inert)
        name = _plain(value.name[:200])
        if depth == 0:
            return f"{name}(…)"
        state = value.state.items() if isinstance(value.state, dict) else ()
        parts = chain((("", v) for v in value.args), ((f"{self.text(k, 0)}=", v) for k, v in state))
        return f"{name}({self._joined(parts, depth)})"

    def _joined(self, parts: Iterable[tuple[str, object]], depth: int) -> str:
        said: list[str] = []
        for label, value in parts:
            said.append(label + self.text(value, depth - 1))
            if self._left <= 0:
                said.append("…")
                break
        return ", ".join(said)


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"


_SCALARS = frozenset({"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"})
_CODES = {
    f"{kind}{size}": size
    for kind, sizes in {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}.items()
    for size in sizes
}


def numpy_scalar(value: Inert) -> str | None:
    """Text of a pickled numpy number, or None if ``value`` is none."""
    if value.name not in _SCALARS or len(value.args) != 2:
        return None
    dtype, raw = value.args
    if (
        not isinstance(dtype, Inert)
        or dtype.name != "numpy.dtype"
        or not dtype.args
        or not isinstance(raw, bytes)
    ):
        return None
    code = dtype.args[0]
    if code == "b1" and len(raw) == 1:
        return str(raw != b"\0")
    if not isinstance(code, str) or _CODES.get(code) != len(raw):
        return None
    import numpy

    order = ">" if isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">" else "<"
    return str(numpy.frombuffer(raw, order + code)[0])
