"""The one place where Keras and TensorFlow are imported, and what the families' Keras models have in common.

Keras chooses its backend once, when it is first imported, so the choice has to come before; TensorFlow reads
how much to log at the same moment.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ckptkit.base.errors import UsageError
from ckptkit.base.parse import parse_num_classes, parse_size
from ckptkit.base.text import printed

BACKEND = "tensorflow"
_STDERR = 2


def require_backend() -> None:
    """Choose Keras' TensorFlow backend, or say that another one is chosen already."""
    wanted = os.environ.setdefault("KERAS_BACKEND", BACKEND)
    loaded = sys.modules.get("keras")
    backend = loaded.backend.backend() if loaded is not None else wanted
    if backend != BACKEND:
        raise UsageError(
            f"the Keras models need Keras on {BACKEND}, but its backend here is {backend}",
            hint=f"set KERAS_BACKEND={BACKEND} before keras is imported",
        )


@contextmanager
def stderr_aside() -> Iterator[None]:
    """Keep what native code writes to stderr off the terminal, unless the block fails.

    TensorFlow 2.21's libraries log start-up notes before they look at ``TF_CPP_MIN_LOG_LEVEL``.
    """
    try:
        terminal = os.dup(_STDERR)
    except OSError:  # no stderr at all: nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            aside.seek(0)
            text = aside.read().decode(errors="backslashreplace")
            os.write(terminal, printed(text, "file").encode(errors="backslashreplace"))
            raise
        finally:
            os.dup2(terminal, _STDERR)
            os.close(terminal)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # below 3, a machine without a GPU is an error it logs
require_backend()
with stderr_aside():
    with suppress(ImportError):
        # CUDA builds of torch bring triton 3, whose library crashes when loaded after TensorFlow 2.21's.
        importlib.import_module("triton")
    import tensorflow as tf

    # isort: split
    import keras  # after tensorflow, its backend

__all__ = [
    "StagedModel",
    "build_chain",
    "built",
    "conv",
    "depthwise_conv",
    "gelu",
    "keras",
    "require_backend",
    "require_images",
    "stderr_aside",
    "tf",
    "track",
]

# -- layers of the models: channels-last, float32 ------------------------------------------------------------


def gelu(x: Any) -> Any:
    """Exact GELU, by the error function."""
    return keras.ops.gelu(x, approximate=False)


def conv(
    name: str, filters: int, kernel: int = 1, strides: int = 1, *, bias: bool = True, padding: str = "same"
) -> Any:
    """Make a convolution, its kernel zero until it is loaded."""
    return keras.layers.Conv2D(
        filters,
        kernel,
        strides=strides,
        padding=padding,
        data_format="channels_last",
        use_bias=bias,
        kernel_initializer="zeros",
        name=name,
        dtype="float32",
    )


def depthwise_conv(name: str, kernel: int, *, strides: int = 1, dilation: int = 1, bias: bool = True) -> Any:
    """Make a depthwise convolution with SAME padding, its kernel zero until it is loaded."""
    return keras.layers.DepthwiseConv2D(
        kernel,
        strides=strides,
        padding="same",
        dilation_rate=dilation,
        data_format="channels_last",
        use_bias=bias,
        depthwise_initializer="zeros",
        name=name,
        dtype="float32",
    )


def build_chain(layers: Sequence[Any], channels: int) -> None:
    """Build layers that follow each other; only their channels matter, so no map is computed."""
    for layer in layers:
        layer.build((None, None, None, channels))
        channels = getattr(layer, "filters", channels)


def track(model: Any, layers: Iterable[Any]) -> None:
    """Tell TensorFlow of layers in a model's lists: ``tf.train.Checkpoint`` looks at attributes alone."""
    for layer in layers:
        model._track_trackable(layer, name=layer.name)


def require_images(inputs: Any) -> None:
    """Check that something is a batch of images, where an error can still say so in one line."""
    shape = tuple(getattr(inputs, "shape", ()))
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape[1:3]:
        raise UsageError(
            f"input of shape {list(shape)}", hint="give images as (N, height, width, 3), channels last"
        )


class StagedModel(keras.Model):
    """A model whose layers give the outputs of its stages one after the other, the logits last."""

    head_layer = "head"
    """The attribute that has the layer of the logits, None in a model without head."""

    def __init__(
        self,
        name: str,
        variant: str,
        *,
        num_features: int,
        usual: int,
        resolution: int | tuple[int, int] | None,
        num_classes: int | None,
        features_only: bool,
    ) -> None:
        classes = parse_num_classes(num_classes)
        size = parse_size(usual if resolution is None else resolution, "resolution")
        super().__init__(name=name, dtype="float32")
        self.variant = variant
        self.num_features = num_features  # channels of the last stage, which the head takes
        self.num_classes = classes
        self.features_only = features_only
        self.resolution = size
        self.resolution_is_given = resolution is not None

    def add_head(self) -> None:
        """Make the head of ``num_classes``, its kernel zero until it is loaded; none where that is None."""
        raise NotImplementedError

    def build_head(self) -> None:
        """Create the variables of the head, where there is one."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int | None) -> None:
        """Give the model a new head of this many classes, which must be trained: compile it afterwards.

        With None or 0 it has none, and a call gives the list of the stages' maps.
        """
        self.num_classes, self.features_only = parse_num_classes(num_classes), False
        old = getattr(self, self.head_layer)
        delattr(self, self.head_layer)
        self._tracker.unlock()  # Keras lets a model that is built have no other layers
        if old is not None:
            self._tracker.untrack(old)
        with ExitStack() as scopes:
            for name in self.path.split("/"):
                scopes.enter_context(keras.name_scope(name))
            self.add_head()
            self.build_head()
        self._tracker.lock()
        self.train_function = self.test_function = self.predict_function = None  # compiled with the old one
        if (head := getattr(self, self.head_layer)) is not None:
            # A kernel of zeros would pass no gradient to the body in the first step.
            head.kernel.assign(keras.initializers.GlorotUniform()(head.kernel.shape))

    def check_input(self, inputs: Any) -> None:
        """Refuse an input of a shape that the model cannot take, where an error can still be one line."""
        require_images(inputs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the input's shape, then run the model."""
        self.check_input(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any) -> Any:
        """Logits (N, classes), or the list of the stages' maps."""
        outputs = self.forward_stages(inputs, head=not self.features_only)
        return outputs["logits"] if "logits" in outputs else list(outputs.values())

    def forward_stages(self, inputs: Any, *, head: bool = True) -> dict[str, Any]:
        """Outputs by name, in order, (N, h, w, C); then ``logits`` (N, classes), where there is a head."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the parameters, for ``model.save``."""
        return {
            "variant": self.variant,
            "resolution": list(self.resolution) if self.resolution_is_given else None,
            "num_classes": self.num_classes,
            "features_only": self.features_only,
        }


def built(model: Any) -> Any:
    """A model with all its variables, zero until they are loaded."""
    model.build((None, *model.resolution, 3))
    return model
