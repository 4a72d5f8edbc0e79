"""MOAT in Keras 3 with the TensorFlow backend, written from arXiv:2210.01820 and the measured facts.

Channels-last, float32. Variables are called as in deeplab2's checkpoints (the ``keras`` layout). Stochastic
depth, which acts in training only, is not part of the model. The layers are in `keras_layers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.base.tensors import Array
from ckptkit.families.keras_backend import keras
from ckptkit.families.keras_models import StagedModel, build_chain, built, track
from ckptkit.families.keras_state import assign, load_state, misfit, refuse, variables_by_name
from ckptkit.families.moat.config import (
    FIRST_ATTENTION_STAGE,
    MOAT_CONFIGS,
    POOL_SIZES,
    POSITION_TABLE_SIZE,
    PUBLISHED_TABLE_SIZES,
)
from ckptkit.families.moat.keras_layers import (
    MBConvBlock,
    MoatBlock,
    Stem,
    Tensor,
    conv,
    layer_norm,
)
from ckptkit.families.moat.windows import WindowSize, parse_window_size, require_whole_windows

STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5")
"""The five feature maps: the stem's, then one for each stage of blocks, at strides 2, 4, 8, 16 and 32."""


__all__ = [
    "STAGES",
    "MoatModel",
    "build",
    "load_published",
    "load_state",
    "variables_by_name",
]


@keras.saving.register_keras_serializable(package="ckptkit")
class MoatModel(StagedModel):
    """One variant.

    Calling it with images (N, H, W, 3) gives the logits (N, classes), or the list of the five feature maps
    (N, H/2, W/2, stem) … (N, H/32, W/32, width), rounded up, when it is headless or ``features_only``.
    """

    def __init__(
        self,
        variant: str,
        *,
        resolution: int | tuple[int, int] | None = None,
        num_classes: int | None = 1000,
        features_only: bool = False,
        pos_emb: bool = True,
        pool_size: int = 2,
        window_size: WindowSize = None,
        global_attention: bool = False,
        table_sizes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if variant not in MOAT_CONFIGS:
            raise NotFoundError(f"unknown MOAT variant {variant!r}", hint="one of " + ", ".join(MOAT_CONFIGS))
        config = MOAT_CONFIGS[variant]
        if pool_size not in POOL_SIZES:
            raise UsageError(f"pool_size={pool_size!r}", hint="2 for classification, 3 for dense prediction")
        super().__init__(
            "moat",
            variant,
            usual=config.resolution,
            resolution=resolution,
            num_classes=num_classes,
            features_only=features_only,
        )
        self.pos_emb = pos_emb
        self.pool_size = pool_size
        self.global_attention = global_attention
        sizes = [(rows, columns) for rows, columns in table_sizes or PUBLISHED_TABLE_SIZES]
        self.table_sizes = dict(zip(POSITION_TABLE_SIZE, sizes, strict=True))
        self.windows = parse_window_size(window_size)
        if self.resolution_is_given:
            self._check_windows(*self.resolution)

        self.stem = Stem(config.stem)
        self.blocks: list[MBConvBlock] = []
        channels = config.stem
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            for block in range(depth):
                self.blocks.append(self._block(stage, block, channels, width, last=block == depth - 1))
                channels = width
        track(self, self.blocks)
        self.stage_ends = [sum(config.depths[: stage + 1]) for stage in range(len(config.depths))]
        self.final_layer_norm = self.logits_head = None
        if self.num_classes is not None:
            self.final_layer_norm = layer_norm("final_layer_norm")
            self.logits_head = conv("logits_head", self.num_classes)

    def _block(self, stage: int, block: int, channels: int, width: int, *, last: bool) -> MBConvBlock:
        name = f"block_{stage:02d}_{block:02d}"
        stride = 2 if block == 0 else 1
        if stage < FIRST_ATTENTION_STAGE:
            return MBConvBlock(channels, width, stride, self.pool_size, name)
        return MoatBlock(
            channels,
            width,
            stride,
            self.pool_size,
            name,
            table_size=self.table_sizes[stage] if self.pos_emb else None,
            window=None if last and self.global_attention else self.windows[stage],
        )

    def build(self, input_shape: Any) -> None:
        """Create every variable from the channels alone, without computing a map."""
        build_chain((self.stem,), 3)
        for block in self.blocks:
            build_chain((block,), block.channels)
        if self.logits_head is not None:
            build_chain((self.final_layer_norm, self.logits_head), MOAT_CONFIGS[self.variant].widths[-1])

    def forward_stages(self, inputs: Any, *, head: bool = True) -> dict[str, Tensor]:
        """Run the model and keep what each stage gives."""
        self.check_input(inputs)
        x = self.stem(keras.ops.convert_to_tensor(inputs, dtype="float32"))
        outputs = {STAGES[0]: x}
        for count, block in enumerate(self.blocks, start=1):
            x = block(x)
            if count in self.stage_ends:
                outputs[STAGES[len(outputs)]] = x
        if head and self.final_layer_norm is not None and self.logits_head is not None:
            pooled = self.final_layer_norm(keras.ops.mean(x, axis=(1, 2), keepdims=True))
            outputs["logits"] = keras.ops.squeeze(self.logits_head(pooled), axis=(1, 2))
        return outputs

    def check_input(self, inputs: Any) -> None:
        """Refuse what is not a batch of images, or has maps that the windows do not divide."""
        super().check_input(inputs)
        shape = tuple(inputs.shape)
        self._check_windows(shape[1], shape[2])

    def _check_windows(self, *image: int | None) -> None:
        """Refuse an image whose maps the windows do not divide; a side unknown yet (None) may be any."""
        for stage, window in self.windows.items():
            if window is not None:
                stride = 2 ** (stage + 2)
                rows, columns = (0 if side is None else math.ceil(side / stride) for side in image)
                require_whole_windows((rows, columns), window)

    def get_config(self) -> dict[str, Any]:
        """Return the parameters, for ``model.save``."""
        return {
            **super().get_config(),
            "pos_emb": self.pos_emb,
            "pool_size": self.pool_size,
            "window_size": {str(stage): window for stage, window in self.windows.items()},
            "global_attention": self.global_attention,
            "table_sizes": [list(size) for size in self.table_sizes.values()],
        }


def build(variant: str, **options: Any) -> MoatModel:
    """Make a variant with all its variables, zero until they are loaded; options as for `MoatModel`."""
    model: MoatModel = built(MoatModel(variant, **options))
    return model


def load_published(
    model: MoatModel, names: Collection[str], read: Callable[[str], Array], *, suffix: str = ""
) -> None:
    """Fill the model straight from a TensorFlow checkpoint, by variable names and without any layout rule."""
    available = frozenset(names)
    variables = variables_by_name(model)
    endings = {name: suffix if variable.trainable else "" for name, variable in variables.items()}
    sources = {name: _source(name, ending, available) for name, ending in endings.items()}
    refuse(model, missing=[_deeplab2_name(n) + endings[n] for n, source in sources.items() if source is None])
    misfits = []
    for name, source in sources.items():
        if source is None:
            continue
        array = read(source)
        if reason := misfit(source, array, variables[name]):
            misfits.append(reason)
        else:
            assign(variables[name], array)
    refuse(model, unfit=misfits)


def _deeplab2_name(name: str) -> str:
    """TensorFlow's depthwise convolution calls its kernel otherwise than Keras 3's."""
    layer, _, leaf = name.rpartition("/")
    return f"{layer}/depthwise_kernel" if layer.endswith("/depthwise_conv") and leaf == "kernel" else name


def _source(name: str, ending: str, available: Collection[str]) -> str | None:
    """Name under which a checkpoint has a variable; models made in TF2 name the stem's layers bare."""
    plain = _deeplab2_name(name) + ending
    return next((n for n in (plain, plain.removeprefix("moat/stem/")) if n in available), None)
