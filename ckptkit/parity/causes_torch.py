"""Changes of a PyTorch model between two of its stages, at the functions that it calls.

Functions are intercepted, not modules: ``F.gelu`` in a ``forward`` is found as ``nn.GELU`` is. Each call
between the two stages is one place for a change, named by the parameter that it uses or the module that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
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
from ckptkit.parity.child import called
from ckptkit.parity.recorder import tensors_in, to_numpy

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "batch_norm": (
        *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "gelu": ("input", "approximate"),
    "leaky_relu": ("input", "negative_slope", "inplace"),
    "linear": ("input", "weight", "bias"),
    **dict.fromkeys(_CONVOLUTIONS, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "pad": ("input", "pad", "mode", "value"),
    "matmul": ("input", "other"),
    "__matmul__": ("input", "other"),
    "multi_head_attention_forward": (
        *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias"),
        *("bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"),
    ),
}
"""The functions in which a change makes sense, with the names of their arguments in order."""

Arguments = dict[str, Any]


@dataclass
class Call:
    """One call of a function between the two stages."""

    function: str
    place: str  # the module that runs
    arguments: Arguments  # tensors among them as they are
    names: Mapping[int, str] = field(repr=False, default_factory=dict)  # of parameters, by their addresses
    then: Call | None = None  # the convolution or the pooling that takes what a padding by hand gives

    def name(self, argument: str = "weight") -> str:
        """The parameter that is used, or else the module."""
        tensor: Any = self.arguments.get(argument)
        known = self.names.get(tensor.data_ptr()) if hasattr(tensor, "data_ptr") else None
        return known or self.place or self.function


class _ReachedError(Exception):
    """The stage has its output: nothing after it matters."""


class Segment:
    """What runs after one stage and until another has its output."""

    def __init__(
        self,
        module: Any,
        inputs: Mapping[str, Any],
        buffers: Mapping[str, Any],  # as they were before anything ran
        after: str | None,
        until: str | None,
    ) -> None:
        self.module, self.inputs, self.after, self.until = module, inputs, after, until
        self.buffers = buffers
        self.names = {one.data_ptr(): name for name, one in module.named_parameters()}
        self.reads: str | None = None  # which of several outputs

    def run(
        self, on_call: Callable[[int, Call, Callable[..., Any]], Any], later: list[Call] | None = None
    ) -> Array | None:
        """Run the model; ``on_call`` makes every call of the segment. Gives the output of its end.

        With ``later`` the whole model runs, and projections after the segment are collected.
        """
        import torch
        from torch.overrides import TorchFunctionMode

        state = _Running(self.after is None)

        class Intercepted(TorchFunctionMode):
            def __torch_function__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                kwargs = kwargs or {}
                name = getattr(function, "__name__", "")
                is_later = state.reached and name == "linear" and later is not None
                is_known = name in _ARGUMENTS and len(args) <= len(_ARGUMENTS[name])
                if not is_known or not (is_later or state.active):
                    return function(*args, **kwargs)
                arguments = dict(zip(_ARGUMENTS[name], args, strict=False)) | kwargs
                call = Call(name, state.modules[-1] if state.modules else "", arguments, names)
                if is_later and later is not None:
                    later.append(call)
                    return function(*args, **kwargs)
                state.count += 1
                return on_call(state.count - 1, call, partial(_again, function, name, args, kwargs))

        names = self.names
        with torch.no_grad():
            for name, buffer in self.module.named_buffers():
                buffer.copy_(self.buffers[name])
            with ExitStack() as stack:
                for name, module in self.module.named_modules():
                    if name:
                        for hook in self._hooks(name, module, state, later is not None):
                            stack.callback(hook.remove)
                try:
                    with Intercepted():
                        state.output = called(self.module, self.module.forward, self.inputs)
                except _ReachedError:
                    pass
        parts = dict(tensors_in(state.output, self.reads or "output"))
        chosen = parts.get(self.until or "") if self.until in parts else next(iter(parts.values()), None)
        array: Array | None = to_numpy(chosen)
        return array

    def _hooks(self, name: str, module: Any, state: _Running, goes_on: bool) -> Iterator[Any]:
        def enter(_module: Any, _given: Any) -> None:
            state.modules.append(name)

        def leave(_module: Any, _given: Any, result: Any) -> None:
            state.modules.pop()
            state.runs[name] = state.runs.get(name, 0) + 1
            called_now = name if state.runs[name] == 1 else f"{name}#{state.runs[name]}"
            for part, _ in tensors_in(result, called_now):
                if part == self.until:
                    self.reads = called_now
                    state.output, state.reached, state.active = result, True, False
                    if not goes_on:
                        raise _ReachedError
                if part == self.after and not state.reached:
                    state.active = True

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave)


@dataclass
class _Running:
    """Where a run is."""

    active: bool
    reached: bool = False
    modules: list[str] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    count: int = 0
    output: Any = None


def _again(function: Any, name: str, args: Any, kwargs: Any, changed: Arguments | None = None) -> Any:
    """Call a function as it was called, with other values for some of its arguments."""
    if not changed:
        return function(*args, **kwargs)
    order = _ARGUMENTS[name]
    values = list(args)
    kwargs = dict(kwargs)
    for key, value in changed.items():
        place = order.index(key)
        if place < len(values):
            values[place] = value
        else:
            kwargs[key] = value
    return function(*values, **kwargs)


def explain(segment: Segment, request: Mapping[str, Any]) -> dict[str, Any]:
    """Try every change that makes sense in a segment."""
    calls: list[Call] = []

    def note(_place: int, call: Call, make: Callable[..., Any]) -> Any:
        calls.append(call)
        return make()

    later: list[Call] = []
    segment.run(note, later)
    _connect(calls)
    active: dict[int, Callable[[Call], Arguments | None]] = {}

    def changed(place: int, call: Call, make: Callable[..., Any]) -> Any:
        return make(active[place](call)) if place in active else make()

    @contextmanager
    def force(places: Mapping[int, Callable[[Call], Arguments | None]]) -> Iterator[None]:
        active.update(places)
        try:
            yield
        finally:
            active.clear()

    changes = (Change(kind, what, partial(force, places)) for kind, what, places in _changes(calls, later))
    return tried(changes, lambda: segment.run(changed), request)


def _connect(calls: list[Call]) -> None:
    """Find what each padding by hand is made for: the next call that takes a map of its size."""
    for place, call in enumerate(calls):
        if call.function != "pad":
            continue
        size = list(call.arguments["input"].shape)
        for axis, added in enumerate(call.arguments["pad"]):
            size[-1 - axis // 2] += added
        call.then = next(
            (
                later
                for later in calls[place + 1 :]
                if later.function in (*_CONVOLUTIONS, "max_pool2d")
                and list(later.arguments["input"].shape) == size
            ),
            None,
        )


_Places = Mapping[int, Callable[[Call], Arguments | None]]


def _changes(calls: list[Call], later: list[Call]) -> Iterator[tuple[str, str, _Places]]:
    """Each change: its kind, in words, what it does at which calls; those of all calls at once first."""
    singles: list[tuple[str, str, _Places]] = []
    for kind, title, applies in _TABLE:
        groups: dict[str, dict[int, Callable[[Call], Arguments | None]]] = {}
        for place, call in enumerate(calls):
            for what, change in applies(call):
                groups.setdefault(what, {})[place] = change
        for what, places in groups.items():
            if len(places) == 1:
                place = next(iter(places))
                yield kind, title.format(what=what, where=calls[place].name()), places
                continue
            yield kind, title.format(what=what, where=f"all {len(places)} of its kind"), places
            singles += [
                (kind, title.format(what=what, where=calls[place].name()), {place: change})
                for place, change in places.items()
            ]
    yield from _swaps(calls, later)
    yield from singles


_Applied = Iterator[tuple[str, Callable[[Call], Arguments | None]]]


def _set(**values: Any) -> Callable[[Call], Arguments]:
    return lambda _call: values


def _epsilon(call: Call) -> _Applied:
    own = call.arguments.get("eps", 1e-5)
    if call.function.endswith("_norm") and isinstance(own, float):
        for epsilon in other_epsilons(own):
            yield f"{spelled(epsilon)} instead of {spelled(own)}", _set(eps=epsilon)


def _gelu(call: Call) -> _Applied:
    if call.function == "gelu":
        own = call.arguments.get("approximate", "none")
        other = "tanh" if own == "none" else "none"
        words = {"none": "the exact GELU (erf)", "tanh": "the tanh approximation of GELU"}
        yield f"{words[other]} instead of {words[own]}", _set(approximate=other)


def _slope(call: Call) -> _Applied:
    if call.function == "leaky_relu":
        own = call.arguments.get("negative_slope", 0.01)
        for slope in other_slopes(own):
            yield f"slope {slope:g} instead of {own:g}", _set(negative_slope=slope)


def _training(call: Call) -> _Applied:
    if call.function == "batch_norm":
        if call.arguments.get("training"):
            if call.arguments.get("running_mean") is not None:
                yield "moving statistics instead of those of the batch", _set(training=False)
        else:
            yield (
                "statistics of the batch (training mode) instead of moving ones",
                _set(training=True, running_mean=None, running_var=None),
            )


def _sizes(value: Any, count: int) -> list[int]:
    return [int(value)] * count if isinstance(value, int) else [int(one) for one in value]


def _padding(call: Call) -> _Applied:
    if call.function == "pad":
        yield from _padding_by_hand(call)
    elif call.function in (*_CONVOLUTIONS, "max_pool2d"):
        same, symmetric = _usual_pads(call, call.arguments["input"].shape[2:])
        padding = call.arguments.get("padding", 0)
        axes = len(same)
        own = same if padding == "same" else _both_sides(0 if padding == "valid" else padding, axes)
        if any(map(any, own)):
            for what, pads in other_paddings(own, same, symmetric):
                yield what, partial(_padded, pads)


def _padding_by_hand(call: Call) -> _Applied:
    """What is added in front of a convolution that adds nothing."""
    pads, size = list(call.arguments["pad"]), call.arguments["input"].shape[2:]
    if call.then is None or len(pads) != 2 * len(size) or min(pads) < 0:
        return
    own = list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    for what, others in other_paddings(own, *_usual_pads(call.then, size)):
        yield what, _set(pad=_flat(others))


def _both_sides(padding: Any, axes: int) -> Pads:
    return [(one, one) for one in _sizes(padding, axes)]


def _usual_pads(call: Call, size: Any) -> tuple[Pads, Pads]:
    """SAME, and what is symmetric, for a convolution or a pooling of a map."""
    axes = len(size)
    if call.function == "max_pool2d":
        kernel = _sizes(call.arguments["kernel_size"], axes)
    else:
        kernel = list(call.arguments["weight"].shape[2:])
    stride = call.arguments.get("stride") or (kernel if call.function == "max_pool2d" else 1)
    dilation = _sizes(call.arguments.get("dilation", 1), axes)
    return same_pads(size, kernel, _sizes(stride, axes), dilation), symmetric_pads(kernel, dilation)


def _flat(pads: Pads) -> list[int]:
    """The last axis first, as PyTorch wants it."""
    return [side for pair in reversed(pads) for side in pair]


def _padded(pads: Pads, call: Call) -> Arguments:
    import torch

    value = float("-inf") if call.function == "max_pool2d" else 0.0
    padded = torch.nn.functional.pad(call.arguments["input"], _flat(pads), value=value)
    return {"input": padded, "padding": 0}


def _bias(call: Call) -> _Applied:
    if call.function in ("linear", *_CONVOLUTIONS) and call.arguments.get("bias") is not None:
        yield "", _set(bias=None)


def _transposed(call: Call) -> _Applied:
    weight: Any = call.arguments.get("weight")
    if call.function == "linear" and weight.shape[0] == weight.shape[1]:
        yield "transposed", lambda call: {"weight": call.arguments["weight"].t()}
    elif call.function in ("matmul", "__matmul__"):
        other: Any = call.arguments.get("other")
        if (
            getattr(other, "ndim", 0) == 2
            and other.shape[0] == other.shape[1]
            and other.data_ptr() in call.names
        ):
            yield "transposed", lambda call: {"other": call.arguments["other"].t()}
    elif call.function in _CONVOLUTIONS:
        if weight.shape[0] == weight.shape[1] > 1:
            yield (
                "with in and out channels swapped",
                lambda call: {"weight": call.arguments["weight"].transpose(0, 1)},
            )
        if weight.ndim >= 4 and weight.shape[-1] == weight.shape[-2] > 1:
            yield (
                "with height and width swapped",
                lambda call: {"weight": call.arguments["weight"].transpose(-1, -2)},
            )


_TABLE: tuple[tuple[str, str, Callable[[Call], _Applied]], ...] = (
    ("epsilon", "epsilon {what} in {where}", _epsilon),
    ("activation", "{what} in {where}", _gelu),
    ("activation", "{what} in {where}", _slope),
    ("batch norm", "{what} in {where}", _training),
    ("padding", "{what} in {where}", _padding),
    ("transpose", "{where} {what}", _transposed),
    ("bias", "no bias in {where}", _bias),
)
"""Kind, sentence, and what it does with a call."""


def _swaps(calls: list[Call], later: list[Call]) -> Iterator[tuple[str, str, _Places]]:
    """Two projections of the same input that have changed places: queries and keys."""
    linear = [(place, call) for place, call in enumerate(calls) if call.function == "linear"]
    for (i, one), (j, other) in combinations(linear, 2):
        if _is_twin(one, other):
            what = f"{one.name()} and {other.name()} swapped"
            yield "swapped", what, {i: _set(**_projection(other)), j: _set(**_projection(one))}
    for i, one in linear:
        for other in later:
            if _is_twin(one, other):
                yield "swapped", f"{one.name()} and {other.name()} swapped", {i: _set(**_projection(other))}
    for place, call in enumerate(calls):
        keys = (
            ("in_proj_weight", "in_proj_bias")
            if call.function.startswith("multi_head")
            else ("weight", "bias")
        )
        weight = call.arguments.get(keys[0])
        is_fused = call.function == "linear" or keys[0] == "in_proj_weight"
        if is_fused and weight is not None and weight.shape[0] == 3 * weight.shape[1]:
            for a, b in combinations(range(3), 2):
                what = f"{'qkv'[a]} and {'qkv'[b]} swapped in {call.name(keys[0])}"
                yield "swapped", what, {place: partial(_parts_swapped, keys, a, b)}


def _is_twin(one: Call, other: Call) -> bool:
    """Whether two calls project the same input in the same way."""
    weights, inputs = ([call.arguments[key] for call in (one, other)] for key in ("weight", "input"))
    same_input = inputs[0].data_ptr() == inputs[1].data_ptr() and inputs[0].shape == inputs[1].shape
    return same_input and weights[0].shape == weights[1].shape and one.name() != other.name()


def _projection(call: Call) -> Arguments:
    return {key: call.arguments.get(key) for key in ("weight", "bias")}


def _parts_swapped(keys: tuple[str, str], a: int, b: int, call: Call) -> Arguments:
    import torch

    order = [0, 1, 2]
    order[a], order[b] = b, a
    return {
        key: torch.cat([call.arguments[key].chunk(3)[part] for part in order])
        for key in keys
        if call.arguments.get(key) is not None
    }
