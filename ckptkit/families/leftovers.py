"""What files hold beside a model's own tensors, by named rules that every family shares.

What training leaves behind is always left out; what is built around a backbone (a detector's neck and heads)
where only the backbone is wanted. What no rule names is refused.
"""

from __future__ import annotations

from ckptkit.layouts import Ignore, Twin

_STATE = "state of the optimizer"
_SLOT = "per-variable state of the optimizer"
_AVERAGE = "ExponentialMovingAverage"

TF_AVERAGES = Twin("ema", suffix=f"/{_AVERAGE}")
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
    # The same behind a name scope, of tf.contrib and Keras in TensorFlow 1: OptimizeLoss/<variable>/Momentum.
    Ignore("optimizer slots", rf"\w+/(?P<variable>.+)/(?!{_AVERAGE}$)[A-Za-z]\w*", _SLOT),
    Ignore("optimizer", r"training(_\d+)?/.+", _STATE),
    # Keras 2.11 to 2.15: Adam/m/<variable>.
    Ignore("moving averages of the optimizer", r"(\w+/)?average/(?P<variable>.+)", "kept by use_ema"),
    Ignore(
        "optimizer slots",
        r"(\w+/)?(m|v|vhat|u|momentum|velocity|velocity_hat|average_gradient|accumulator|linear"
        r"|accumulated_(grad|delta_var))/(?P<variable>.+)",
        _SLOT,
    ),
    # Keras 3: adam/<variable, with underscores>_momentum; in mixed precision behind loss_scale_optimizer/.
    Ignore("moving averages of the optimizer", r"(\w+/){1,2}\w+_average", "kept by use_ema"),
    Ignore(
        "optimizer slots",
        r"(\w+/){1,2}\w+_(momentum|velocity|velocity_hat|average_gradient|accumulator|linear|norm"
        r"|gradient_accumulator|accumulated_(grad|delta_var))",
        _SLOT,
    ),
    # The part of a Keras file, and variables without a name of their own.
    Ignore("optimizer", r"(.+/)?optimizer(_weights)?/.+", _STATE),
    Ignore("metrics", r"(keras_api/)?metrics/.+|total|count", "figures of the last training epoch"),
    Ignore(
        "random state",
        r"(.+/)?seed_generator(_\d+)?/(seed_generator_state|vars/0)",
        "of layers that act in training",
    ),
    Ignore(
        "profiler counters", r"(.+\.)?total_(ops|params)", "operations and parameters as thop counted them"
    ),
)
"""In every layout. The first rule that fits is the one that is named."""

OPTIMIZER = Ignore("optimizer", "", _STATE)
"""For what a file itself says is an optimizer's, whatever its name."""
