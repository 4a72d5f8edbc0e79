"""Where Keras 3's weights files store the variables of the Keras models.

Keras names nothing there: a variable is the n-th of its layer, and a layer is found by the attributes that
lead to it from the model. The rules follow from those of the ``keras`` layout, whose names end with the
variable's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckptkit.rules.language import Ignore, Rule

_NUMBERS = {
    "kernel": 0,
    "depthwise_kernel": 0,
    "weight": 0,
    "bias": 1,
    "gamma": 0,
    "beta": 1,
    "moving_mean": 2,
    "moving_variance": 3,
    "scale": 0,
    "layer_scale_1": 0,
    "layer_scale_2": 1,
    "relative_position_embedding": 0,
}
"""The order in which layers create their variables, by the variables' names."""

STEP_COUNTERS = Ignore(
    "BatchNorm step counters", "", "Keras counts no steps; they are not needed with a fixed momentum"
)


def rules_of_keras_file(rules: Iterable[Rule], places: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules of a weights file, from those of the ``keras`` layout.

    >>> (rule,) = rules_of_keras_file([Rule("fc.bias", "net/fc/bias")], {"net/fc": "layers/dense"})
    >>> rule.external
    'layers/dense/vars/1'
    """
    return tuple(
        Rule(rule.canonical, _place(rule.external, places), rule.op)
        for rule in rules
        if rule.external.rpartition("/")[2] in _NUMBERS
    )


def _place(name: str, places: Mapping[str, str]) -> str:
    layer, _, variable = name.rpartition("/")
    (first,) = (first for first in places if f"{layer}/".startswith(f"{first}/"))
    return f"{places[first]}{layer.removeprefix(first)}/vars/{_NUMBERS[variable]}"
