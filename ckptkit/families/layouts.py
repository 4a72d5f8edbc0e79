"""What the layouts of all families share: definitions and names of layers, and what else is in such files.

What training leaves behind is always left out; what is built around a backbone (a detector's neck and heads)
where only the backbone is wanted. What no rule names is refused.

Names of dense prediction: the classes of mmdetection 2 and 3, mmsegmentation, mmpose, detectron2, torchvision
and DETR; google-research/deeplab2 model/decoder and model/kmax_deeplab.py at 64bc1c1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckptkit.formats.base import AVERAGING_COUNTERS
from ckptkit.rules.language import CopyNaming, Definition, Ignore, Rule

# -- layers --------------------------------------------------------------------------------------------------


def conv(
    name: str, sites: str, *shape: int | str, bias: bool = True, bias_part: str = "body"
) -> list[Definition]:
    """The tensors of a convolution or linear layer, whose weight has this shape."""
    weight = Definition(f"{name}.weight", shape, sites)
    return [weight, Definition(f"{name}.bias", shape[:1], sites, part=bias_part)] if bias else [weight]


def layer_norm(name: str, sites: str, width: str, part: str = "body") -> list[Definition]:
    """The tensors of a LayerNorm."""
    return [Definition(f"{name}.{leaf}", (width,), sites, part=part) for leaf in ("weight", "bias")]


def batch_norm(name: str, sites: str, width: str, *, counter: bool = False) -> list[Definition]:
    """The tensors of a BatchNorm; ``counter`` is that of its training steps."""
    statistics = [
        Definition(f"{name}.{leaf}", (width,), sites, trainable=False, part="bn_statistics")
        for leaf in ("running_mean", "running_var")
    ]
    steps = Definition(f"{name}.num_batches_tracked", (), sites, trainable=False, part="counter")
    return [*layer_norm(name, sites, width), *statistics, *([steps] if counter else ())]


# -- their names in TensorFlow and Keras ---------------------------------------------------------------------

_OF_NORMS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def tensorflow_rules(
    definitions: Iterable[Definition],
    modules: Mapping[str, str],
    *,
    others: Mapping[str, tuple[str, str]] | None = None,
    depthwise: str = "kernel",
    optional: str = "",
    alone: str = "",
) -> tuple[Rule, ...]:
    """Rules of a layout that has TensorFlow's names and axis orders.

    ``modules`` maps beginnings of canonical names, ``others`` the tensors that follow no custom to their last
    name and op. ``depthwise`` is the name of a depthwise kernel, ``optional`` a beginning that may be absent,
    ``alone`` what a tensor is called that has a whole name in ``modules``, as a layer of its own.

    >>> definitions = [*conv("stem.0", "", 8, 3, 3, 3), *batch_norm("stem.1", "", "width")]
    >>> for rule in tensorflow_rules(definitions, {"stem": "net/stem", "stem.1": "net/norm"})[:3]:
    ...     print(rule.external, rule.op)
    net/stem/0/kernel conv
    net/stem/0/bias identity
    net/norm/gamma identity
    """
    definitions = list(definitions)
    norms = {_layer(one) for one in definitions if one.name.endswith(".weight") and len(one.shape) == 1}
    rules = []
    for one in definitions:
        leaf, op = (others or {}).get(one.name) or _custom(one, depthwise, is_norm=_layer(one) in norms)
        own = modules.get(one.name)
        external = f"{own}/{alone}" if own else f"{_renamed(_layer(one), modules)}/{leaf}"
        bare = external.removeprefix(optional)
        rules.append(Rule(one.name, external, op, aliases=() if bare == external else (bare,)))
    return tuple(rules)


def _layer(definition: Definition) -> str:
    return definition.name.rpartition(".")[0]


def _custom(definition: Definition, depthwise: str, *, is_norm: bool) -> tuple[str, str]:
    """Last name and op of a tensor in TensorFlow."""
    leaf = definition.name.rpartition(".")[2]
    rank = len(definition.shape)
    if is_norm:
        return _OF_NORMS.get(leaf, leaf), "identity"
    if leaf == "weight" and rank == 2:
        return "kernel", "linear"
    if leaf == "weight":
        return (depthwise, "depthwise") if definition.shape[1] == 1 else ("kernel", "conv")
    return leaf, "identity" if rank == 1 else "channels"


def _renamed(layer: str, modules: Mapping[str, str]) -> str:
    """A layer's name under the longest beginning that is mapped."""
    begins = [name for name in modules if f"{layer}.".startswith(f"{name}.")]
    begin = max(begins, key=len)
    return modules[begin] + layer.removeprefix(begin).replace(".", "/")


# -- their places in Keras' weights files --------------------------------------------------------------------

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
    """Rules of a Keras 3 weights file, from those of the ``keras`` layout.

    Keras names nothing there: a variable is the n-th of its layer, and a layer is found by the attributes
    that lead to it from the model.

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


# -- what else is in such files ------------------------------------------------------------------------------

_STATE = "state of the optimizer"
_SLOT = "per-variable state of the optimizer"
_AVERAGE = "ExponentialMovingAverage"

OPTIMIZER_AVERAGES = "moving averages of the optimizer"

TF_AVERAGES = CopyNaming("ema", suffix=f"/{_AVERAGE}")
"""How TensorFlow's ``tf.train.ExponentialMovingAverage`` calls its copy of a variable."""

TRAINING = (
    Ignore("global_step", r"(.+/)?global_step", "counts training steps"),
    Ignore("save_counter", r"save_counter(/.*)?", "counts how often tf.train.Checkpoint saved"),
    Ignore(
        "optimizer scalars",
        r"(.+/)?(beta[12]_power(_\d+)?|iter|iterations?|(current_)?learning_rate|decay|beta_[12]|rho|momentum"
        r"|step_counter|dynamic_scale|current_loss_scale|good_steps)",
        _STATE,
    ),
    # TensorFlow 1, and object-based checkpoints up to Keras 2.10: <variable>/Adam_1, also of a part.
    Ignore("optimizer slots", rf"(?P<variable>.+?)(/part_\d+)?/(?!{_AVERAGE}$)[A-Za-z]\w*", _SLOT),
    Ignore("optimizer slots of moving averages", rf"(?P<variable>.+)/{_AVERAGE}/\w+", _SLOT),
    # The same after a name scope, of tf.contrib and Keras in TensorFlow 1: OptimizeLoss/<variable>/Momentum.
    Ignore("optimizer slots", rf"\w+/(?P<variable>.+)/(?!{_AVERAGE}$)[A-Za-z]\w*", _SLOT),
    Ignore("optimizer", r"training(_\d+)?/.+", _STATE),
    # Keras 2.11 to 2.15: Adam/m/<variable>.
    Ignore(OPTIMIZER_AVERAGES, r"(\w+/)?average/(?P<variable>.+)", "kept by use_ema"),
    Ignore(
        "optimizer slots",
        r"(\w+/)?(m|v|vhat|u|momentum|velocity|velocity_hat|average_gradient|accumulator|linear"
        r"|accumulated_(grad|delta_var))/(?P<variable>.+)",
        _SLOT,
    ),
    # Keras 3: adam/<variable, with underscores>_momentum; in mixed precision after loss_scale_optimizer/.
    Ignore(OPTIMIZER_AVERAGES, r"(\w+/){1,2}\w+_average", "kept by use_ema"),
    Ignore(
        "optimizer slots",
        r"(\w+/){1,2}\w+_(momentum|velocity|velocity_hat|average_gradient|accumulator|linear|norm"
        r"|gradient_accumulator|accumulated_(grad|delta_var))",
        _SLOT,
    ),
    # The part of a Keras file, and variables without a name of their own.
    Ignore("optimizer", r"(.+/)?(optimizer(_weights)?|opt_state)/.+", _STATE),
    Ignore("metrics", r"(keras_api/)?metrics/.+|total|count", "figures of the last training epoch"),
    Ignore(
        "random state",
        r"(.+/)?seed_generator(_\d+)?/(seed_generator_state|vars/0)",
        "of layers that act in training",
    ),
    Ignore("averaging counter", "|".join(AVERAGING_COUNTERS), "counts the steps of averaging"),
    Ignore(
        "profiler counters", r"(.+\.)?total_(ops|params)", "operations and parameters as thop counted them"
    ),
)
"""In every layout. The first rule that fits is the one that is named."""

OPTIMIZER = Ignore("optimizer", "", _STATE)
"""For what a file itself says is an optimizer's, whatever its name."""


def slot_rule(name: str, variables: Mapping[str, object]) -> Ignore | None:
    """The rule by which a tensor is an optimizer's state of one of some variables, of any model."""
    rules = (rule for rule in TRAINING if "(?P<variable>" in rule.pattern)
    return next((rule for rule in rules if rule.matches(name, variables)), None)


def training_rule(name: str, variables: Mapping[str, object]) -> Ignore | None:
    """The rule by which only training needs a tensor, of any model."""
    rules = (rule for rule in TRAINING if "(?P<" not in rule.pattern)
    return slot_rule(name, variables) or next((rule for rule in rules if rule.matches(name, {})), None)


_PART_OF = "part of a {}"


def _around(whole: str, parts: str, end: str = r"[._].+") -> Ignore:
    """Parts of whole models, with what mmcv's EMA hook makes of their names: ``ema_neck_convs_0_weight``."""
    return Ignore("{part}", rf"(?:ema_)?(?P<part>{parts}){end}", _PART_OF.format(whole))


AROUND = (
    _around(
        "detector",
        r"(rpn|roi|bbox|track|mask(_feat|_iou)?)_head|rpn|roi_heads|proposal_generator|query_embed(ding)?|class_embed"
        r"|bbox_embed|input_proj|transformer|level_embed|reference_points|dn_query_generator|memory_trans_(fc|norm)"
        r"|pixel_(mean|std)|backbone\.(fpn\w*|top_block)",
        r"([._].+)?",
    ),
    _around("segmentor", r"(decode|auxiliary|aux|panoptic(_fusion)?|semantic|sem_seg)_head|aux_classifier"),
    _around("pose model", r"keypoint_head|head(?=\.(?!fc\.)\w+\.)"),
    _around("dense-prediction model", r"(\w+_)?neck|\w+_heads?|encoder|decoder|data_preprocessor"),
)
"""Around a backbone in PyTorch; the last names parts that several kinds of model have."""

AROUND_DEEPLAB2 = (
    Ignore(
        "{part}",
        r"((DeepLab|kMaXDeepLab)/)?(?P<part>DeepLabV3|DeepLabv3Plus|PanopticDeepLab|MotionDeepLabDecoder|ViPDeepLab"
        r"|MaXDeepLab(_\d+)?|kmax_(pixel|transformer)_decoder|\w*(semantic|instance)_decoder"
        r"|(auxiliary_)?semantic_head|(next_)?instance_\w+_head|motion_regression_head|depth_head"
        r"|pixel_space_\w+|transformer_(mask|class)_head)/.+",
        _PART_OF.format("segmentor"),
    ),
)
"""Around a backbone in TensorFlow."""


def whole_model(reasons: Iterable[str]) -> str:
    """What a file is of, by the reasons why its parts are left out.

    >>> whole_model(["part of a dense-prediction model", "part of a detector", "state of the optimizer"])
    'detector'
    """
    known = [rule.reason for rule in (*AROUND, *AROUND_DEEPLAB2)]
    first = min((known.index(reason) for reason in reasons if reason in known), default=None)
    return "" if first is None else known[first].removeprefix(_PART_OF.format(""))
