"""Changes of a Keras model between two of its stages, at the layers that run there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from typing import Any

from ckptkit.base.tensors import Array
from ckptkit.parity.causes import (
    Change,
    Pads,
    other_epsilons,
    other_paddings,
    other_slopes,
    same_pads,
    spelled,
    symmetric_pads,
    tried,
)
from ckptkit.parity.recorder import layer_name, tensors_in, to_numpy

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Around = Callable[[Any, Arguments], AbstractContextManager[Arguments]]
"""What is done around one call of a layer; it gives the arguments that the layer gets."""


@dataclass
class Call:
    """One layer that ran between the two stages."""

    layer: Any
    name: str
    given: int  # identity of its first argument
    options: Mapping[str, Any]
    shape: tuple[int, ...]  # of its first argument
    then: Call | None = None  # the layer that runs next


class _ReachedError(Exception):
    """The stage has its output."""


class Segment:
    """What runs after one stage and until another has its output."""

    def __init__(self, model: Any, forward: Callable[[], Any], after: str | None, until: str | None) -> None:
        self.model, self.forward, self.after, self.until = model, forward, after, until
        self.gelus = 0
        self._kept: list[Any] = []  # inputs of the survey, so that no identity is used twice

    def run(
        self,
        changes: Mapping[int, Around] | None = None,
        calls: list[Call] | None = None,
        later: list[Call] | None = None,
        *,
        other_gelu: bool = False,
    ) -> Array | None:
        """Run the model with changes at some of the layers; ``calls`` collects them.

        With ``later`` the whole model runs, and the layers after the segment are collected.
        """
        import keras

        layer_class = keras.layers.Layer
        original = layer_class.__call__
        state = _Running(self.after is None)

        def call(layer: Any, *args: Any, **options: Any) -> Any:
            name = layer_name(layer, self.model.name)
            place = state.count
            is_in = state.active
            collected = calls if is_in else later if state.reached else None
            if collected is not None:
                self._kept.append(args)
                given = args[0] if args else None
                collected.append(Call(layer, name, id(given), options, tuple(getattr(given, "shape", ()))))
            state.count += is_in
            around = (changes or {}).get(place) if is_in else None
            if around is None:
                result = original(layer, *args, **options)
            else:
                with around(layer, (args, options)) as (given, named):
                    result = original(layer, *given, **named)
            if name:
                self._passed(state, name, result, later is not None)
            return result

        with ExitStack() as stack:
            stack.callback(setattr, layer_class, "__call__", original)
            layer_class.__call__ = call
            stack.enter_context(self._gelu(state, other_gelu))
            with suppress(_ReachedError):
                state.output = self.forward()
        parts = dict(tensors_in(state.output, state.reads))
        chosen = parts[self.until] if self.until in parts else next(iter(parts.values()), None)
        array: Array | None = to_numpy(chosen)
        return array

    def _passed(self, state: _Running, name: str, result: Any, goes_on: bool) -> None:
        state.runs[name] = state.runs.get(name, 0) + 1
        name = name if state.runs[name] == 1 else f"{name}#{state.runs[name]}"
        for part, _ in tensors_in(result, name):
            if part == self.until:
                state.output, state.reads = result, name
                state.reached, state.active = True, False
                if not goes_on:
                    raise _ReachedError
            if part == self.after and not state.reached:
                state.active = True

    @contextmanager
    def _gelu(self, state: _Running, other: bool) -> Iterator[None]:
        """Count the calls of GELU, which need no layer; ``other`` is the approximation for the exact one."""
        from keras.src import backend

        original = backend.nn.gelu

        def gelu(x: Any, approximate: bool = True) -> Any:
            if state.active:
                self.gelus += 1
            return original(x, approximate != (other and state.active))

        backend.nn.gelu = gelu
        try:
            yield
        finally:
            backend.nn.gelu = original


class _Running:
    """Where a run is."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self.reached = False
        self.runs: dict[str, int] = {}
        self.count = 0
        self.output: Any = None
        self.reads = "output"


def explain(model: Any, forward: Callable[[], Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Try every change that makes sense in a segment."""
    segment = Segment(model, forward, request["after"], request["until"])
    calls: list[Call] = []
    later: list[Call] = []
    segment.run(calls=calls, later=later)
    for call, following in pairwise(calls):
        call.then = following if type(following.layer).__name__ in _WINDOWS else None
    now: dict[str, Any] = {}

    @contextmanager
    def force(**options: Any) -> Iterator[None]:
        now.update(options)
        try:
            yield
        finally:
            now.clear()

    changes = [
        Change(kind, what, partial(force, changes=places)) for kind, what, places in _changes(calls, later)
    ]
    if segment.gelus:
        what = "the other GELU (exact for tanh, tanh for exact)"
        changes.insert(0, Change("activation", what, partial(force, other_gelu=True)))
    return tried(changes, lambda: segment.run(**now), request)


_Places = Mapping[int, Around]


def _changes(calls: list[Call], later: list[Call]) -> Iterator[tuple[str, str, _Places]]:
    """Each change; those of all layers at once come first."""
    singles: list[tuple[str, str, _Places]] = []
    for kind, title, applies in _TABLE:
        groups: dict[str, dict[int, Around]] = {}
        for place, call in enumerate(calls):
            for what, around in applies(call):
                groups.setdefault(what, {})[place] = around
        for what, places in groups.items():
            each = [(kind, title.format(what=what, where=calls[p].name), {p: a}) for p, a in places.items()]
            if len(each) > 1:
                yield kind, title.format(what=what, where=f"all {len(each)} of its kind"), places
                singles += each
            else:
                yield each[0]
    yield from _swaps(calls, later)
    yield from singles


def _swaps(calls: list[Call], later: list[Call]) -> Iterator[tuple[str, str, _Places]]:
    """Two projections of the same input that have changed places: queries and keys."""
    for (i, one), (j, other) in combinations(enumerate(calls), 2):
        if _is_twin(one, other):
            what = f"{one.name} and {other.name} swapped"
            yield "swapped", what, {i: _as(other.layer), j: _as(one.layer)}
    for i, one in enumerate(calls):
        for other in later:
            if _is_twin(one, other):
                yield "swapped", f"{one.name} and {other.name} swapped", {i: _as(other.layer)}


def _is_twin(one: Call, other: Call) -> bool:
    """Whether two layers project the same input in the same way."""
    layers = (one.layer, other.layer)
    if not all(type(layer).__name__ in ("Dense", "EinsumDense") for layer in layers):
        return False
    same_shape = one.layer.kernel.shape == other.layer.kernel.shape
    return one.given == other.given and same_shape and one.layer is not other.layer


_Applied = Iterator[tuple[str, Around]]


def _attribute(name: str, value: Any) -> Around:
    @contextmanager
    def around(layer: Any, given: Arguments) -> Iterator[Arguments]:
        own = getattr(layer, name)
        setattr(layer, name, value)
        try:
            yield given
        finally:
            setattr(layer, name, own)

    return around


def _values(change: Callable[[Any], Mapping[str, Array]]) -> Around:
    """Other values of a layer's variables."""

    @contextmanager
    def around(layer: Any, given: Arguments) -> Iterator[Arguments]:
        values = change(layer)
        own = {name: to_numpy(getattr(layer, name).value) for name in values}
        for name, value in values.items():
            getattr(layer, name).assign(value)
        try:
            yield given
        finally:
            for name, value in own.items():
                getattr(layer, name).assign(value)

    return around


def _as(other: Any) -> Around:
    """The weights of another layer, as they are before anything is changed."""
    own = {
        name: to_numpy(getattr(other, name).value)
        for name in ("kernel", "bias")
        if getattr(other, name, None) is not None
    }
    return _values(lambda _layer: own)


def _epsilon(call: Call) -> _Applied:
    own = getattr(call.layer, "epsilon", None)
    if isinstance(own, float) and "Normalization" in type(call.layer).__name__:
        for epsilon in other_epsilons(own):
            yield f"{spelled(epsilon)} instead of {spelled(own)}", _attribute("epsilon", epsilon)


def _slope(call: Call) -> _Applied:
    if type(call.layer).__name__ == "LeakyReLU":
        own = float(call.layer.negative_slope)
        for slope in other_slopes(own):
            yield f"slope {slope:g} instead of {own:g}", _attribute("negative_slope", slope)


def _training(call: Call) -> _Applied:
    if type(call.layer).__name__ != "BatchNormalization":
        return
    wanted = not call.options.get("training")

    @contextmanager
    def around(layer: Any, given: Arguments) -> Iterator[Arguments]:
        kept = [(one, to_numpy(one.value)) for one in (layer.moving_mean, layer.moving_variance)]
        try:
            yield given[0], {**given[1], "training": wanted}
        finally:
            for one, value in kept:
                one.assign(value)

    words = ("moving statistics instead of those of the batch", "statistics of the batch (training mode)")
    yield words[wanted], around


def _padding(call: Call) -> _Applied:
    layer, kind = call.layer, type(call.layer).__name__
    if len(call.shape) != 4 or getattr(layer, "data_format", "channels_last") != "channels_last":
        return
    size = call.shape[1:3]
    if kind in _WINDOWS and layer.padding == "same":
        same, symmetric = _usual_pads(layer, size)
        if any(map(any, same)):
            for what, pads in other_paddings(same, same, symmetric):
                yield what, partial(_padded, pads)
    elif kind == "ZeroPadding2D" and call.then is not None:
        for what, pads in other_paddings(layer.padding, *_usual_pads(call.then.layer, size)):
            yield what, _attribute("padding", pads)


_WINDOWS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "MaxPooling2D")


def _usual_pads(layer: Any, size: Iterable[int]) -> tuple[Pads, Pads]:
    """SAME, and what is symmetric, for a convolution or a pooling of a map."""
    kernel = _pair(layer.pool_size if type(layer).__name__ == "MaxPooling2D" else layer.kernel_size)
    dilation = _pair(getattr(layer, "dilation_rate", 1))
    return same_pads(size, kernel, _pair(layer.strides), dilation), symmetric_pads(kernel, dilation)


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


@contextmanager
def _padded(pads: Pads, layer: Any, given: Arguments) -> Iterator[Arguments]:
    import keras

    value = float("-inf") if type(layer).__name__ == "MaxPooling2D" else 0.0
    (first, *rest), options = given
    padded = keras.ops.pad(first, [(0, 0), *pads, (0, 0)], constant_values=value)
    with _attribute("padding", "valid")(layer, given):
        yield (padded, *rest), options


def _transposed(call: Call) -> _Applied:
    import numpy

    kernel = getattr(call.layer, "kernel", None)
    shape = tuple(kernel.shape) if kernel is not None else ()
    if len(shape) < 2:
        return

    def with_axes(a: int, b: int) -> Around:
        return _values(lambda layer: {"kernel": numpy.swapaxes(to_numpy(layer.kernel.value), a, b)})

    if shape[-1] == shape[-2] > 1:
        yield "transposed" if len(shape) == 2 else "with in and out channels swapped", with_axes(-1, -2)
    if len(shape) == 4 and shape[0] == shape[1] > 1:
        yield "with height and width swapped", with_axes(0, 1)


def _bias(call: Call) -> _Applied:
    import numpy

    bias = getattr(call.layer, "bias", None)
    if bias is not None and hasattr(bias, "assign"):
        yield "", _values(lambda layer: {"bias": numpy.zeros(tuple(layer.bias.shape), "float32")})


_TABLE: tuple[tuple[str, str, Callable[[Call], _Applied]], ...] = (
    ("epsilon", "epsilon {what} in {where}", _epsilon),
    ("activation", "{what} in {where}", _slope),
    ("batch norm", "{what} in {where}", _training),
    ("padding", "{what} in {where}", _padding),
    ("transpose", "the kernel of {where} {what}", _transposed),
    ("bias", "no bias in {where}", _bias),
)
"""Kind, sentence, and what it does with a layer."""
