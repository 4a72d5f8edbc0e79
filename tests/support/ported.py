"""Models under two sets of names, written by hand: what `rules suggest` has to find out.

Names and shapes are those of the published code; widths are smaller. The target's values are random numbers
and the source's follow from them here with numpy alone, so that a suggestion is judged by what it makes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]


@dataclass
class Port:
    """Tensors of the same weights on both sides."""

    name: str
    source: dict[str, Array] = field(default_factory=dict)
    target: dict[str, Array] = field(default_factory=dict)
    made_of: dict[str, frozenset[str]] = field(default_factory=dict)  # target → its sources; none: a constant

    def add(
        self,
        sources: str | Iterable[str],
        targets: str | Iterable[str],
        shape: Shape,
        how: str = "same",
        **sizes: int,
    ) -> None:
        """One tensor, or several that are one on the other side; ``shape``: the target's, or of each part."""
        left = [sources] if isinstance(sources, str) else list(sources)
        right = [targets] if isinstance(targets, str) else list(targets)
        if len(left) > 1:
            parts = [self._random(f"{right[0]}{n}", shape) for n in range(len(left))]
            axis = sizes.get("axis", 0)
            self.target[right[0]] = (
                np.stack(parts) if how.startswith("stack") else np.concatenate(parts, axis)
            )
            for name, part in zip(left, parts, strict=True):
                self.source[name] = TO_SOURCE[how.removeprefix("stack ")](part, sizes)
        elif len(right) > 1:
            parts = [self._random(name, shape) for name in right]
            self.target.update(zip(right, parts, strict=True))
            turned = [TO_SOURCE[how.removeprefix("stack ")](part, sizes) for part in parts]
            axis = sizes.get("axis", 0)
            self.source[left[0]] = (
                np.stack(turned) if how.startswith("stack") else np.concatenate(turned, axis)
            )
        else:
            self.target[right[0]] = self._random(right[0], shape)
            self.source[left[0]] = TO_SOURCE[how](self.target[right[0]], sizes)
        for name in right:
            self.made_of[name] = frozenset(left)

    def both(
        self,
        source: str,
        target: str,
        shape: Shape,
        how: str = "same",
        *,
        bias: tuple[str, str] | bool = True,
        **sizes: int,
    ) -> None:
        """A layer: its kernel and its bias, TensorFlow's and PyTorch's leaves."""
        self.add(f"{source}/kernel", f"{target}.weight", shape, how, **sizes)
        if bias:
            self.add(f"{source}/bias", f"{target}.bias", shape[:1])

    def norm(
        self,
        source: str,
        target: str,
        width: int,
        *,
        batch: bool = False,
        scale: str = "gamma",
        shift: str = "beta",
    ) -> None:
        """A norm."""
        self.add(f"{source}/{scale}", f"{target}.weight", (width,))
        self.add(f"{source}/{shift}", f"{target}.bias", (width,))
        if batch:
            self.add(f"{source}/moving_mean", f"{target}.running_mean", (width,))
            self.add(f"{source}/moving_variance", f"{target}.running_var", (width,))
            self.target[f"{target}.num_batches_tracked"] = np.zeros((), np.int64)
            self.made_of[f"{target}.num_batches_tracked"] = frozenset()

    def _random(self, key: str, shape: Shape) -> Array:
        seed = zlib.crc32(f"{self.name} {key}".encode())
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def turned_round(self) -> Port:
        """The same port the other way."""
        back: dict[str, set[str]] = {}
        for target, sources in self.made_of.items():
            for source in sources:
                back.setdefault(source, set()).add(target)
        made_of = {name: frozenset(back.get(name, ())) for name in self.source}
        return Port(f"{self.name} back", dict(self.target), dict(self.source), made_of)

    def sorted_by_name(self) -> Port:
        """The source as a TensorFlow checkpoint has it: sorted."""
        self.source = dict(sorted(self.source.items()))
        return self


TO_SOURCE: dict[str, Callable[[Array, Mapping[str, int]], Array]] = {
    "same": lambda t, _: t,
    "linear": lambda t, _: t.T,
    "conv": lambda t, _: t.transpose(2, 3, 1, 0),
    "depthwise": lambda t, _: t.transpose(2, 3, 0, 1),
    "conv1x1": lambda t, _: t.T[None, None],
    "conv1d": lambda t, _: t.T[None],
    "heads_in": lambda t, s: t.T.reshape(t.shape[1], s["heads"], -1),
    "heads_out": lambda t, s: t.T.reshape(s["heads"], -1, t.shape[0]),
    "heads": lambda t, s: t.reshape(s["heads"], -1),
    "vector": lambda t, _: t.reshape(-1),
}

PORTS: dict[str, Callable[[], Port]] = {}
UNSEEN: dict[str, Callable[[], Port]] = {}
"""Written when the first version was finished, which guessed only the norms of `efficientnet` wrong."""


def port(make: Callable[[], Port]) -> Callable[[], Port]:
    """Register a port."""
    PORTS[make.__name__] = make
    return make


def unseen(make: Callable[[], Port]) -> Callable[[], Port]:
    """Register a port that the first version was not tuned on."""
    UNSEEN[make.__name__] = make
    return make


# -- transformers --------------------------------------------------------------------------------------------


@port
def bert() -> Port:
    """BERT's TensorFlow release to transformers."""
    p = Port("bert")
    d, ff = 48, 192
    e = "bert/embeddings"
    p.add(f"{e}/word_embeddings", "bert.embeddings.word_embeddings.weight", (101, d))
    p.add(f"{e}/position_embeddings", "bert.embeddings.position_embeddings.weight", (64, d))
    p.add(f"{e}/token_type_embeddings", "bert.embeddings.token_type_embeddings.weight", (2, d))
    p.norm(f"{e}/LayerNorm", "bert.embeddings.LayerNorm", d)
    for i in range(12):
        a, b = f"bert/encoder/layer_{i}", f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            p.both(f"{a}/attention/self/{name}", f"{b}.attention.self.{name}", (d, d), "linear")
        p.both(f"{a}/attention/output/dense", f"{b}.attention.output.dense", (d, d), "linear")
        p.norm(f"{a}/attention/output/LayerNorm", f"{b}.attention.output.LayerNorm", d)
        p.both(f"{a}/intermediate/dense", f"{b}.intermediate.dense", (ff, d), "linear")
        p.both(f"{a}/output/dense", f"{b}.output.dense", (d, ff), "linear")
        p.norm(f"{a}/output/LayerNorm", f"{b}.output.LayerNorm", d)
    p.both("bert/pooler/dense", "bert.pooler.dense", (d, d), "linear")
    p.both("cls/predictions/transform/dense", "cls.predictions.transform.dense", (d, d), "linear")
    p.norm("cls/predictions/transform/LayerNorm", "cls.predictions.transform.LayerNorm", d)
    p.add("cls/predictions/output_bias", "cls.predictions.bias", (101,))
    p.add("cls/seq_relationship/output_weights", "cls.seq_relationship.weight", (2, d))
    p.add("cls/seq_relationship/output_bias", "cls.seq_relationship.bias", (2,))
    return p.sorted_by_name()


@port
def bert_fused() -> Port:
    """BERT to an encoder with fused q/k/v in timm's words."""
    p = Port("bert_fused")
    d, ff = 48, 192
    p.add("bert/embeddings/word_embeddings", "embed.tok.weight", (101, d))
    p.add("bert/embeddings/position_embeddings", "embed.pos.weight", (64, d))
    p.norm("bert/embeddings/LayerNorm", "embed.norm", d)
    for i in range(12):
        a, b = f"bert/encoder/layer_{i}", f"blocks.{i}"
        names = [f"{a}/attention/self/{name}" for name in ("query", "key", "value")]
        p.add([f"{n}/kernel" for n in names], f"{b}.attn.qkv.weight", (d, d), "linear")
        p.add([f"{n}/bias" for n in names], f"{b}.attn.qkv.bias", (d,))
        p.both(f"{a}/attention/output/dense", f"{b}.attn.proj", (d, d), "linear")
        p.norm(f"{a}/attention/output/LayerNorm", f"{b}.norm1", d)
        p.both(f"{a}/intermediate/dense", f"{b}.mlp.fc1", (ff, d), "linear")
        p.both(f"{a}/output/dense", f"{b}.mlp.fc2", (d, ff), "linear")
        p.norm(f"{a}/output/LayerNorm", f"{b}.norm2", d)
    return p.sorted_by_name()


def _t5(p: Port, *, fused: bool) -> Port:
    d, inner, ff = 48, 64, 128
    p.add("shared/embedding", "shared.weight", (111, d))
    for stack, layers in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for i in range(4):
            for j, attention in enumerate(layers):
                a = f"{stack}/block_{i:03}/layer_{j:03}"
                b = f"{stack}.block.{i}.layer.{j}"
                if fused and attention == "SelfAttention":
                    p.add(
                        [f"{a}/{attention}/{n}" for n in "qkv"],
                        f"{b}.{attention}.qkv.weight",
                        (inner, d),
                        "linear",
                    )
                else:
                    for n in "qkv":
                        p.add(f"{a}/{attention}/{n}", f"{b}.{attention}.{n}.weight", (inner, d), "linear")
                p.add(f"{a}/{attention}/o", f"{b}.{attention}.o.weight", (d, inner), "linear")
                if i == 0 and attention == "SelfAttention":
                    p.add(
                        f"{a}/{attention}/relative_attention_bias",
                        f"{b}.{attention}.relative_attention_bias.weight",
                        (32, 4),
                        "linear",
                    )
                p.add(f"{a}/layer_norm/scale", f"{b}.layer_norm.weight", (d,))
            a, b = f"{stack}/block_{i:03}/layer_{len(layers):03}", f"{stack}.block.{i}.layer.{len(layers)}"
            p.add(f"{a}/DenseReluDense/wi/kernel", f"{b}.DenseReluDense.wi.weight", (ff, d), "linear")
            p.add(f"{a}/DenseReluDense/wo/kernel", f"{b}.DenseReluDense.wo.weight", (d, ff), "linear")
            p.add(f"{a}/layer_norm/scale", f"{b}.layer_norm.weight", (d,))
        p.add(f"{stack}/final_layer_norm/scale", f"{stack}.final_layer_norm.weight", (d,))
    return p.sorted_by_name()


@port
def t5() -> Port:
    """T5's TensorFlow release to transformers."""
    return _t5(Port("t5"), fused=False)


@port
def t5_fused() -> Port:
    """The same to a model with fused q/k/v in self attention."""
    return _t5(Port("t5_fused"), fused=True)


@port
def vit_jax() -> Port:
    """Google's ViT in npz to timm."""
    p = Port("vit_jax")
    d, heads = 48, 4
    p.add("cls", "cls_token", (1, 1, d))
    p.add("Transformer/posembed_input/pos_embedding", "pos_embed", (1, 17, d))
    p.both("embedding", "patch_embed.proj", (d, 3, 4, 4), "conv")
    for i in range(12):
        a, b = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        m = f"{a}/MultiHeadDotProductAttention_1"
        parts = [f"{m}/{n}" for n in ("query", "key", "value")]
        p.add([f"{n}/kernel" for n in parts], f"{b}.attn.qkv.weight", (d, d), "heads_in", heads=heads)
        p.add([f"{n}/bias" for n in parts], f"{b}.attn.qkv.bias", (d,), "heads", heads=heads)
        p.add(f"{m}/out/kernel", f"{b}.attn.proj.weight", (d, d), "heads_out", heads=heads)
        p.add(f"{m}/out/bias", f"{b}.attn.proj.bias", (d,))
        p.norm(f"{a}/LayerNorm_0", f"{b}.norm1", d, scale="scale", shift="bias")
        p.norm(f"{a}/LayerNorm_2", f"{b}.norm2", d, scale="scale", shift="bias")
        p.both(f"{a}/MlpBlock_3/Dense_0", f"{b}.mlp.fc1", (4 * d, d), "linear")
        p.both(f"{a}/MlpBlock_3/Dense_1", f"{b}.mlp.fc2", (d, 4 * d), "linear")
    p.norm("Transformer/encoder_norm", "norm", d, scale="scale", shift="bias")
    p.both("head", "head", (10, d), "linear")
    return p


@port
def mixer() -> Port:
    """MLP-Mixer in npz to timm."""
    p = Port("mixer")
    d, tokens, tm, cm = 48, 16, 24, 192
    p.both("stem", "stem.proj", (d, 3, 4, 4), "conv")
    for i in range(12):
        a, b = f"MixerBlock_{i}", f"blocks.{i}"
        p.norm(f"{a}/LayerNorm_0", f"{b}.norm1", d, scale="scale", shift="bias")
        p.both(f"{a}/token_mixing/Dense_0", f"{b}.mlp_tokens.fc1", (tm, tokens), "linear")
        p.both(f"{a}/token_mixing/Dense_1", f"{b}.mlp_tokens.fc2", (tokens, tm), "linear")
        p.norm(f"{a}/LayerNorm_1", f"{b}.norm2", d, scale="scale", shift="bias")
        p.both(f"{a}/channel_mixing/Dense_0", f"{b}.mlp_channels.fc1", (cm, d), "linear")
        p.both(f"{a}/channel_mixing/Dense_1", f"{b}.mlp_channels.fc2", (d, cm), "linear")
    p.norm("pre_head_layer_norm", "norm", d, scale="scale", shift="bias")
    p.both("head", "head", (10, d), "linear")
    return p


@port
def gpt2() -> Port:
    """GPT-2's TensorFlow release to transformers, whose weights are not transposed."""
    p = Port("gpt2")
    d = 48
    p.add("model/wte", "wte.weight", (211, d))
    p.add("model/wpe", "wpe.weight", (64, d))
    for i in range(12):
        a, b = f"model/h{i}", f"h.{i}"
        for name, out, into in (
            ("attn/c_attn", 3 * d, d),
            ("attn/c_proj", d, d),
            ("mlp/c_fc", 4 * d, d),
            ("mlp/c_proj", d, 4 * d),
        ):
            target = f"{b}.{name.replace('/', '.')}"
            p.target[f"{target}.weight"] = p._random(target, (into, out))
            p.source[f"{a}/{name}/w"] = p.target[f"{target}.weight"][None]
            p.made_of[f"{target}.weight"] = frozenset({f"{a}/{name}/w"})
            p.add(f"{a}/{name}/b", f"{target}.bias", (out,))
        p.norm(f"{a}/ln_1", f"{b}.ln_1", d, scale="g", shift="b")
        p.norm(f"{a}/ln_2", f"{b}.ln_2", d, scale="g", shift="b")
    p.norm("model/ln_f", "ln_f", d, scale="g", shift="b")
    return p.sorted_by_name()


@port
def scanned() -> Port:
    """Layers that JAX scans over, to one module each."""
    p = Port("scanned")
    d, ff, n = 24, 80, 6
    p.add("token_embedder/embedding", "embed_tokens.weight", (99, d))
    names = range(n)
    for a, b, out, into in (
        ("attention/query", "self_attn.q_proj", d, d),
        ("attention/key", "self_attn.k_proj", d, d),
        ("attention/value", "self_attn.v_proj", d, d),
        ("attention/out", "self_attn.o_proj", d, d),
        ("mlp/wi", "mlp.up_proj", ff, d),
        ("mlp/wo", "mlp.down_proj", d, ff),
    ):
        p.add(
            f"decoder/layers/{a}/kernel",
            [f"layers.{i}.{b}.weight" for i in names],
            (out, into),
            "stack linear",
        )
    p.add(
        "decoder/layers/pre_attention_norm/scale",
        [f"layers.{i}.input_norm.weight" for i in names],
        (d,),
        "stack same",
    )
    p.add(
        "decoder/layers/pre_mlp_norm/scale",
        [f"layers.{i}.post_attention_norm.weight" for i in names],
        (d,),
        "stack same",
    )
    p.add("decoder/final_norm/scale", "norm.weight", (d,))
    return p


@port
def experts() -> Port:
    """A mixture of experts, one tensor each, to stacked ones."""
    p = Port("experts")
    d, ff, n = 24, 40, 8
    p.add("embed/embedding", "embed.weight", (99, d))
    for i in range(4):
        a, b = f"layer_{i}", f"layers.{i}"
        for name in ("query", "key", "value", "out"):
            p.both(f"{a}/attn/{name}", f"{b}.attn.{name}", (d, d), "linear")
        p.add(
            [f"{a}/moe/experts_{e}/wi/kernel" for e in range(n)],
            f"{b}.moe.experts.wi",
            (ff, d),
            "stack linear",
        )
        p.add(
            [f"{a}/moe/experts_{e}/wo/kernel" for e in range(n)],
            f"{b}.moe.experts.wo",
            (d, ff),
            "stack linear",
        )
        p.add(f"{a}/moe/router/kernel", f"{b}.moe.gate.weight", (n, d), "linear")
        p.add(f"{a}/norm/scale", f"{b}.norm.weight", (d,))
    return p


# -- convolutional networks ----------------------------------------------------------------------------------


@port
def mixtral() -> Port:
    """Mixtral, a tensor for each projection of each expert, to transformers 5, whose experts are stacked."""
    p = Port("mixtral")
    d, ff, experts = 24, 40, 6
    p.add("model.embed_tokens.weight", "model.embed_tokens.weight", (97, d))
    for i in range(3):
        a = f"model.layers.{i}"
        for name, shape in (("q", (d, d)), ("k", (8, d)), ("v", (8, d)), ("o", (d, d))):
            p.add(f"{a}.self_attn.{name}_proj.weight", f"{a}.self_attn.{name}_proj.weight", shape)
        p.add(f"{a}.block_sparse_moe.gate.weight", f"{a}.mlp.gate.weight", (experts, d))
        expert = f"{a}.block_sparse_moe.experts"
        both = [[f"{expert}.{e}.w{n}.weight" for n in (1, 3)] for e in range(experts)]
        rows = []
        for row in both:
            for name in row:
                p.source[name] = p._random(name, (ff, d))
            rows.append(np.concatenate([p.source[name] for name in row]))
        p.target[f"{a}.mlp.experts.gate_up_proj"] = np.stack(rows)
        p.made_of[f"{a}.mlp.experts.gate_up_proj"] = frozenset(name for row in both for name in row)
        down = [f"{expert}.{e}.w2.weight" for e in range(experts)]
        p.add(down, f"{a}.mlp.experts.down_proj", (d, ff), "stack same")
        for name in ("input_layernorm", "post_attention_layernorm"):
            p.add(f"{a}.{name}.weight", f"{a}.{name}.weight", (d,))
    p.add("model.norm.weight", "model.norm.weight", (d,))
    p.add("lm_head.weight", "lm_head.weight", (97, d))
    return p


@port
def resnet50() -> Port:
    """Keras' ResNet50 to torchvision."""
    p = Port("resnet50")
    p.both("conv1_conv", "conv1", (64, 3, 7, 7), "conv", bias=False)
    p.norm("conv1_bn", "bn1", 64, batch=True)
    width_in = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (16, 32, 64, 128), strict=True)):
        for block in range(blocks):
            a, b = f"conv{stage + 2}_block{block + 1}", f"layer{stage + 1}.{block}"
            if block == 0:
                p.both(f"{a}_0_conv", f"{b}.downsample.0", (4 * width, width_in, 1, 1), "conv", bias=False)
                p.norm(f"{a}_0_bn", f"{b}.downsample.1", 4 * width, batch=True)
            for n, shape in enumerate(
                ((width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)), 1
            ):
                p.both(f"{a}_{n}_conv", f"{b}.conv{n}", shape, "conv", bias=False)
                p.norm(f"{a}_{n}_bn", f"{b}.bn{n}", shape[0], batch=True)
            width_in = 4 * width
    p.both("predictions", "fc", (100, width_in), "linear")
    return p


@port
def mobilenet_v2() -> Port:
    """Keras' MobileNetV2 to torchvision."""
    p = Port("mobilenet_v2")

    def conv(names: tuple[str, str], into: tuple[str, str], shape: Shape, how: str = "conv") -> None:
        (source, norm), (target, n) = names, into
        leaf = "depthwise_kernel" if how == "depthwise" else "kernel"
        p.add(f"{source}/{leaf}", f"{target}.weight", shape, how)
        p.norm(norm, n, shape[0], batch=True)

    conv(("Conv1", "bn_Conv1"), ("features.0.0", "features.0.1"), (32, 3, 3, 3))
    width_in, at = 32, 0
    for t, width, blocks in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(blocks):
            a = f"block_{at}_" if at else "expanded_conv_"
            f = f"features.{at + 1}.conv"
            inner = t * width_in
            n = 0
            if t > 1:
                conv((f"{a}expand", f"{a}expand_BN"), (f"{f}.0.0", f"{f}.0.1"), (inner, width_in, 1, 1))
                n = 1
            conv(
                (f"{a}depthwise", f"{a}depthwise_BN"),
                (f"{f}.{n}.0", f"{f}.{n}.1"),
                (inner, 1, 3, 3),
                "depthwise",
            )
            conv((f"{a}project", f"{a}project_BN"), (f"{f}.{n + 1}", f"{f}.{n + 2}"), (width, inner, 1, 1))
            width_in, at = width, at + 1
    conv(("Conv_1", "Conv_1_bn"), ("features.18.0", "features.18.1"), (1280, 320, 1, 1))
    p.both("predictions", "classifier.1", (1000, 1280), "linear")
    return p


@port
def vgg16() -> Port:
    """Keras' VGG16 to torchvision."""
    p = Port("vgg16")
    width_in, at = 3, 0
    for block, (width, count) in enumerate(((16, 2), (32, 2), (64, 3), (128, 3), (128, 3)), 1):
        for n in range(1, count + 1):
            p.both(f"block{block}_conv{n}", f"features.{at}", (width, width_in, 3, 3), "conv")
            width_in, at = width, at + 2
        at += 1
    p.both("fc1", "classifier.0", (96, 128 * 4), "linear")
    p.both("fc2", "classifier.3", (96, 96), "linear")
    p.both("predictions", "classifier.6", (10, 96), "linear")
    return p


@port
def convnext() -> Port:
    """Keras' ConvNeXt to torchvision."""
    p = Port("convnext")
    widths, depths = (24, 48, 96, 192), (3, 3, 9, 3)
    k = "convnext_tiny"
    p.both(f"{k}_stem/{k}_stem_conv", "features.0.0", (24, 3, 4, 4), "conv")
    p.norm(f"{k}_stem/{k}_stem_layernorm", "features.0.1", 24)
    for s, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if s:
            p.norm(
                f"{k}_downsampling_block_{s - 1}/{k}_downsampling_layernorm_{s - 1}",
                f"features.{2 * s}.0",
                widths[s - 1],
            )
            p.both(
                f"{k}_downsampling_block_{s - 1}/{k}_downsampling_conv_{s - 1}",
                f"features.{2 * s}.1",
                (width, widths[s - 1], 2, 2),
                "conv",
            )
        for n in range(depth):
            a, b = f"{k}_stage_{s}_block_{n}", f"features.{2 * s + 1}.{n}"
            p.both(f"{a}_depthwise_conv", f"{b}.block.0", (width, 1, 7, 7), "conv")
            p.norm(f"{a}_layernorm", f"{b}.block.2", width)
            p.both(f"{a}_pointwise_conv_1", f"{b}.block.3", (4 * width, width), "linear")
            p.both(f"{a}_pointwise_conv_2", f"{b}.block.5", (width, 4 * width), "linear")
            p.add(f"{a}_layer_scale/gamma", f"{b}.layer_scale", (width, 1, 1), "vector")
    p.norm(f"{k}_head_layernorm", "classifier.0", 192)
    p.both(f"{k}_head_dense", "classifier.2", (10, 192), "linear")
    return p


@port
def unet() -> Port:
    """A PyTorch UNet to Keras' numbered layers."""
    p = Port("unet")
    at = 0

    def keras(kind: str, n: int) -> str:
        return f"layers/{kind}{f'_{n}' if n else ''}/vars"

    def conv(name: str, out: int, into: int, k: int = 3) -> None:
        nonlocal at
        to = keras("conv2d", at)
        p.target[f"{to}/0"] = p._random(name, (k, k, into, out))
        p.source[f"{name}.weight"] = p.target[f"{to}/0"].transpose(3, 2, 0, 1)
        p.made_of[f"{to}/0"] = frozenset({f"{name}.weight"})
        p.add(f"{name}.bias", f"{to}/1", (out,))
        at += 1

    norms = 0

    def double(name: str, out: int, into: int) -> None:
        nonlocal norms
        for n, width in enumerate((into, out)):
            conv(f"{name}.conv{n + 1}", out, width)
            to = keras("batch_normalization", norms)
            for leaf, number in (("weight", 0), ("bias", 1), ("running_mean", 2), ("running_var", 3)):
                p.add(f"{name}.bn{n + 1}.{leaf}", f"{to}/{number}", (out,))
            p.source[f"{name}.bn{n + 1}.num_batches_tracked"] = np.zeros((), np.int64)
            norms += 1

    double("inc", 16, 3)
    for n, width in enumerate((32, 64, 128), 1):
        double(f"down{n}", width, width // 2)
    for n, width in enumerate((64, 32, 16), 1):
        to = keras("conv2d_transpose", n - 1)
        p.target[f"{to}/0"] = p._random(f"up{n}", (2, 2, width, 2 * width))
        p.source[f"up{n}.up.weight"] = p.target[f"{to}/0"].transpose(3, 2, 0, 1)
        p.made_of[f"{to}/0"] = frozenset({f"up{n}.up.weight"})
        p.add(f"up{n}.up.bias", f"{to}/1", (width,))
        double(f"up{n}.conv", width, 2 * width)
    conv("outc", 2, 16, 1)
    return p


@port
def missing_biases() -> Port:
    """A source without the biases that the target's convolutions have before their norms."""
    p = Port("missing_biases")
    width = 8
    for i in range(6):
        a, b = f"stage/block_{i + 1}", f"blocks.{i}"
        p.both(f"{a}/conv1", f"{b}.conv1", (width, width, 3, 3), "conv", bias=False)
        p.target[f"{b}.conv1.bias"] = p._random(f"{b} bias", (width,))
        p.norm(f"{a}/bn1", f"{b}.bn1", width, batch=True)
        p.both(f"{a}/conv2", f"{b}.conv2", (2 * width, width, 3, 3), "conv")
        p.norm(f"{a}/bn2", f"{b}.bn2", 2 * width, batch=True)
        width *= 2 if i < 2 else 1
        if i >= 2:
            p.both(f"{a}/back", f"{b}.back", (width, 2 * width, 1, 1), "conv")
        else:
            p.both(f"{a}/back", f"{b}.back", (width, width, 1, 1), "conv")
    return p


def both_ways(ports: Mapping[str, Callable[[], Port]]) -> Iterator[Port]:
    """Every port in both directions."""
    for make in ports.values():
        yield make()
        yield make().turned_round()


# -- what the first version was not tuned on -----------------------------------------------------------------


@unseen
def densenet() -> Port:
    """Keras' DenseNet121 to torchvision."""
    p = Port("densenet")
    p.both("conv1_conv", "features.conv0", (64, 3, 7, 7), "conv", bias=False)
    p.norm("conv1_bn", "features.norm0", 64, batch=True)
    width = 64
    for block, count in enumerate((6, 12, 24, 16), 1):
        for n in range(1, count + 1):
            a, b = f"conv{block + 1}_block{n}", f"features.denseblock{block}.denselayer{n}"
            p.norm(f"{a}_0_bn", f"{b}.norm1", width, batch=True)
            p.both(f"{a}_1_conv", f"{b}.conv1", (128, width, 1, 1), "conv", bias=False)
            p.norm(f"{a}_1_bn", f"{b}.norm2", 128, batch=True)
            p.both(f"{a}_2_conv", f"{b}.conv2", (32, 128, 3, 3), "conv", bias=False)
            width += 32
        if block < 4:
            p.norm(f"pool{block + 1}_bn", f"features.transition{block}.norm", width, batch=True)
            p.both(
                f"pool{block + 1}_conv",
                f"features.transition{block}.conv",
                (width // 2, width, 1, 1),
                "conv",
                bias=False,
            )
            width //= 2
    p.norm("bn", "features.norm5", width, batch=True)
    p.both("predictions", "classifier", (1000, width), "linear")
    return p


@unseen
def efficientnet() -> Port:
    """Keras' EfficientNetB0 to torchvision."""
    p = Port("efficientnet")

    def conv(source: str, target: str, shape: Shape, how: str = "conv") -> None:
        leaf = "depthwise_kernel" if how == "depthwise" else "kernel"
        p.add(f"{source}conv/{leaf}", f"{target}.0.weight", shape, how)
        p.norm(f"{source}bn", f"{target}.1", shape[0], batch=True)

    conv("stem_", "features.0", (32, 3, 3, 3))
    p.source["stem_conv/kernel"] = p.source.pop("stem_conv/kernel")
    width_in = 32
    stages = (
        (1, 3, 16, 1),
        (6, 3, 24, 2),
        (6, 5, 40, 2),
        (6, 3, 80, 3),
        (6, 5, 112, 3),
        (6, 5, 192, 4),
        (6, 3, 320, 1),
    )
    for stage, (t, k, width, count) in enumerate(stages, 1):
        for n in range(count):
            a, b = f"block{stage}{'abcd'[n]}_", f"features.{stage}.{n}.block"
            inner, at = t * width_in, 0
            if t > 1:
                conv(f"{a}expand_", f"{b}.0", (inner, width_in, 1, 1))
                at = 1
            p.add(f"{a}dwconv/kernel", f"{b}.{at}.0.weight", (inner, 1, k, k), "depthwise")
            p.norm(f"{a}bn", f"{b}.{at}.1", inner, batch=True)
            squeeze = max(1, width_in // 4)
            p.both(f"{a}se_reduce", f"{b}.{at + 1}.fc1", (squeeze, inner, 1, 1), "conv")
            p.both(f"{a}se_expand", f"{b}.{at + 1}.fc2", (inner, squeeze, 1, 1), "conv")
            conv(f"{a}project_", f"{b}.{at + 2}", (width, inner, 1, 1))
            width_in = width
    conv("top_", "features.8", (1280, 320, 1, 1))
    p.both("predictions", "classifier.1", (1000, 1280), "linear")
    return p


@port
def mobilenet_slim() -> Port:
    """MobileNetV2's TensorFlow-slim release to transformers; a norm is inside of its convolution there."""
    p = Port("mobilenet_slim")

    def conv(source: str, target: str, shape: Shape, how: str = "conv") -> None:
        leaf = "depthwise_weights" if how == "depthwise" else "weights"
        p.add(f"MobilenetV2/{source}/{leaf}", f"mobilenet_v2.{target}.convolution.weight", shape, how)
        p.norm(
            f"MobilenetV2/{source}/BatchNorm", f"mobilenet_v2.{target}.normalization", shape[0], batch=True
        )

    conv("Conv", "conv_stem.first_conv", (32, 3, 3, 3))
    conv("expanded_conv/depthwise", "conv_stem.conv_3x3", (32, 1, 3, 3), "depthwise")
    conv("expanded_conv/project", "conv_stem.reduce_1x1", (16, 32, 1, 1))
    width_in, at = 16, 0
    for width, blocks in ((24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)):
        for _ in range(blocks):
            a, b, inner = f"expanded_conv_{at + 1}", f"layer.{at}", 6 * width_in
            conv(f"{a}/expand", f"{b}.expand_1x1", (inner, width_in, 1, 1))
            conv(f"{a}/depthwise", f"{b}.conv_3x3", (inner, 1, 3, 3), "depthwise")
            conv(f"{a}/project", f"{b}.reduce_1x1", (width, inner, 1, 1))
            width_in, at = width, at + 1
    conv("Conv_1", "conv_1x1", (1280, 320, 1, 1))
    p.add("MobilenetV2/Logits/Conv2d_1c_1x1/weights", "classifier.weight", (1001, 1280), "conv1x1")
    p.add("MobilenetV2/Logits/Conv2d_1c_1x1/biases", "classifier.bias", (1001,))
    return p.sorted_by_name()


@unseen
def llama() -> Port:
    """LLaMA's release to transformers."""
    p = Port("llama")
    d, ff, kv = 48, 136, 16
    p.add("tok_embeddings.weight", "model.embed_tokens.weight", (211, d))
    for i in range(8):
        a, b = f"layers.{i}", f"model.layers.{i}"
        for left, right, shape in (
            ("attention.wq", "self_attn.q_proj", (d, d)),
            ("attention.wk", "self_attn.k_proj", (kv, d)),
            ("attention.wv", "self_attn.v_proj", (kv, d)),
            ("attention.wo", "self_attn.o_proj", (d, d)),
            ("feed_forward.w1", "mlp.gate_proj", (ff, d)),
            ("feed_forward.w3", "mlp.up_proj", (ff, d)),
            ("feed_forward.w2", "mlp.down_proj", (d, ff)),
            ("attention_norm", "input_layernorm", (d,)),
            ("ffn_norm", "post_attention_layernorm", (d,)),
        ):
            p.add(f"{a}.{left}.weight", f"{b}.{right}.weight", shape)
    p.add("norm.weight", "model.norm.weight", (d,))
    p.add("output.weight", "lm_head.weight", (211, d))
    return p


@unseen
def clip() -> Port:
    """OpenAI's CLIP to transformers."""
    p = Port("clip")
    for a, b, d, n in (("transformer", "text_model", 32, 6), ("visual.transformer", "vision_model", 48, 8)):
        for i in range(n):
            x, y = f"{a}.resblocks.{i}", f"{b}.encoder.layers.{i}"
            parts = [f"{y}.self_attn.{part}_proj" for part in "qkv"]
            p.add(f"{x}.attn.in_proj_weight", [f"{part}.weight" for part in parts], (d, d))
            p.add(f"{x}.attn.in_proj_bias", [f"{part}.bias" for part in parts], (d,))
            for left, right, shape in (
                ("attn.out_proj", "self_attn.out_proj", (d, d)),
                ("mlp.c_fc", "mlp.fc1", (4 * d, d)),
                ("mlp.c_proj", "mlp.fc2", (d, 4 * d)),
                ("ln_1", "layer_norm1", (d,)),
                ("ln_2", "layer_norm2", (d,)),
            ):
                p.add(f"{x}.{left}.weight", f"{y}.{right}.weight", shape)
                p.add(f"{x}.{left}.bias", f"{y}.{right}.bias", shape[:1])
    p.add("token_embedding.weight", "text_model.embeddings.token_embedding.weight", (111, 32))
    p.add("positional_embedding", "text_model.embeddings.position_embedding.weight", (77, 32))
    for left, right, d in (
        ("ln_final", "text_model.final_layer_norm", 32),
        ("visual.ln_pre", "vision_model.pre_layrnorm", 48),
        ("visual.ln_post", "vision_model.post_layernorm", 48),
    ):
        p.add(f"{left}.weight", f"{right}.weight", (d,))
        p.add(f"{left}.bias", f"{right}.bias", (d,))
    p.add("text_projection", "text_projection.weight", (24, 32), "linear")
    p.add("visual.proj", "visual_projection.weight", (24, 48), "linear")
    p.add("visual.class_embedding", "vision_model.embeddings.class_embedding", (48,))
    p.add("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight", (50, 48))
    p.add("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight", (48, 3, 8, 8))
    p.add("logit_scale", "logit_scale", ())
    return p


@unseen
def swin() -> Port:
    """timm's Swin to transformers."""
    p = Port("swin")

    def two(left: str, right: str, shape: Shape) -> None:
        p.add(f"{left}.weight", f"{right}.weight", shape)
        p.add(f"{left}.bias", f"{right}.bias", shape[:1])

    two("patch_embed.proj", "swin.embeddings.patch_embeddings.projection", (24, 3, 4, 4))
    two("patch_embed.norm", "swin.embeddings.norm", (24,))
    for s, (d, depth, heads) in enumerate(((24, 2, 3), (48, 2, 6), (96, 6, 12), (192, 2, 24))):
        for n in range(depth):
            a, b = f"layers.{s}.blocks.{n}", f"swin.encoder.layers.{s}.blocks.{n}"
            two(f"{a}.norm1", f"{b}.layernorm_before", (d,))
            p.add(
                f"{a}.attn.relative_position_bias_table",
                f"{b}.attention.self.relative_position_bias_table",
                (169, heads),
            )
            parts = [f"{b}.attention.self.{part}" for part in ("query", "key", "value")]
            p.add(f"{a}.attn.qkv.weight", [f"{part}.weight" for part in parts], (d, d))
            p.add(f"{a}.attn.qkv.bias", [f"{part}.bias" for part in parts], (d,))
            two(f"{a}.attn.proj", f"{b}.attention.output.dense", (d, d))
            two(f"{a}.norm2", f"{b}.layernorm_after", (d,))
            two(f"{a}.mlp.fc1", f"{b}.intermediate.dense", (4 * d, d))
            two(f"{a}.mlp.fc2", f"{b}.output.dense", (d, 4 * d))
        if s < 3:
            p.add(
                f"layers.{s}.downsample.reduction.weight",
                f"swin.encoder.layers.{s}.downsample.reduction.weight",
                (2 * d, 4 * d),
            )
            two(f"layers.{s}.downsample.norm", f"swin.encoder.layers.{s}.downsample.norm", (4 * d,))
    two("norm", "swin.layernorm", (192,))
    two("head", "classifier", (10, 192))
    return p


@unseen
def detr() -> Port:
    """DETR's transformer to transformers."""
    p = Port("detr")
    d, ff = 48, 160

    def two(left: str, right: str, shape: Shape) -> None:
        p.add(f"{left}.weight", f"{right}.weight", shape)
        p.add(f"{left}.bias", f"{right}.bias", shape[:1])

    def attention(left: str, right: str) -> None:
        parts = [f"{right}.{part}_proj" for part in "qkv"]
        p.add(f"{left}.in_proj_weight", [f"{part}.weight" for part in parts], (d, d))
        p.add(f"{left}.in_proj_bias", [f"{part}.bias" for part in parts], (d,))
        two(f"{left}.out_proj", f"{right}.out_proj", (d, d))

    for stack in ("encoder", "decoder"):
        for i in range(6):
            a, b = f"transformer.{stack}.layers.{i}", f"model.{stack}.layers.{i}"
            attention(f"{a}.self_attn", f"{b}.self_attn")
            two(f"{a}.norm1", f"{b}.self_attn_layer_norm", (d,))
            if stack == "decoder":
                attention(f"{a}.multihead_attn", f"{b}.encoder_attn")
                two(f"{a}.norm2", f"{b}.encoder_attn_layer_norm", (d,))
            two(f"{a}.linear1", f"{b}.fc1", (ff, d))
            two(f"{a}.linear2", f"{b}.fc2", (d, ff))
            two(f"{a}.norm{3 if stack == 'decoder' else 2}", f"{b}.final_layer_norm", (d,))
    two("transformer.decoder.norm", "model.decoder.layernorm", (d,))
    p.add("query_embed.weight", "model.query_position_embeddings.weight", (100, d))
    two("input_proj", "model.input_projection", (d, 256, 1, 1))
    two("class_embed", "class_labels_classifier", (92, d))
    for n, out in enumerate((d, d, 4)):
        two(f"bbox_embed.layers.{n}", f"bbox_predictor.layers.{n}", (out, d))
    return p


@unseen
def whisper() -> Port:
    """OpenAI's Whisper to transformers."""
    p = Port("whisper")
    d = 48

    def two(left: str, right: str, shape: Shape, *, bias: bool = True) -> None:
        p.add(f"{left}.weight", f"{right}.weight", shape)
        if bias:
            p.add(f"{left}.bias", f"{right}.bias", shape[:1])

    def attention(left: str, right: str) -> None:
        two(f"{left}.query", f"{right}.q_proj", (d, d))
        two(f"{left}.key", f"{right}.k_proj", (d, d), bias=False)
        two(f"{left}.value", f"{right}.v_proj", (d, d))
        two(f"{left}.out", f"{right}.out_proj", (d, d))

    two("encoder.conv1", "model.encoder.conv1", (d, 80, 3))
    two("encoder.conv2", "model.encoder.conv2", (d, d, 3))
    p.add("encoder.positional_embedding", "model.encoder.embed_positions.weight", (150, d))
    p.add("decoder.token_embedding.weight", "model.decoder.embed_tokens.weight", (301, d))
    p.add("decoder.positional_embedding", "model.decoder.embed_positions.weight", (44, d))
    for stack in ("encoder", "decoder"):
        for i in range(4):
            a, b = f"{stack}.blocks.{i}", f"model.{stack}.layers.{i}"
            attention(f"{a}.attn", f"{b}.self_attn")
            two(f"{a}.attn_ln", f"{b}.self_attn_layer_norm", (d,))
            if stack == "decoder":
                attention(f"{a}.cross_attn", f"{b}.encoder_attn")
                two(f"{a}.cross_attn_ln", f"{b}.encoder_attn_layer_norm", (d,))
            two(f"{a}.mlp.0", f"{b}.fc1", (4 * d, d))
            two(f"{a}.mlp.2", f"{b}.fc2", (d, 4 * d))
            two(f"{a}.mlp_ln", f"{b}.final_layer_norm", (d,))
    two("encoder.ln_post", "model.encoder.layer_norm", (d,))
    two("decoder.ln", "model.decoder.layer_norm", (d,))
    return p


@unseen
def bit() -> Port:
    """Google's BiT-R50 in npz to timm."""
    p = Port("bit")
    p.add("resnet/root_block/standardized_conv2d/kernel", "stem.conv.weight", (64, 3, 7, 7), "conv")
    width_in = 64
    for block, (count, width) in enumerate(zip((3, 4, 6, 3), (32, 64, 128, 256), strict=True), 1):
        for unit in range(1, count + 1):
            a, b = f"resnet/block{block}/unit{unit:02}", f"stages.{block - 1}.blocks.{unit - 1}"
            shapes = ((width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for n, (letter, shape) in enumerate(zip("abc", shapes, strict=True), 1):
                p.add(f"{a}/{letter}/standardized_conv2d/kernel", f"{b}.conv{n}.weight", shape, "conv")
                p.norm(f"{a}/{letter}/group_norm", f"{b}.norm{n}", shape[1])
            if unit == 1:
                p.add(
                    f"{a}/a/proj/standardized_conv2d/kernel",
                    f"{b}.downsample.conv.weight",
                    (4 * width, width_in, 1, 1),
                    "conv",
                )
            width_in = 4 * width
    p.norm("resnet/group_norm", "norm", width_in)
    p.add("resnet/head/conv2d/kernel", "head.fc.weight", (10, width_in, 1, 1), "conv")
    p.add("resnet/head/conv2d/bias", "head.fc.bias", (10,))
    return p


@unseen
def vit_hf() -> Port:
    """Google's ViT in npz to transformers."""
    p = Port("vit_hf")
    d, heads = 48, 4
    p.add("cls", "vit.embeddings.cls_token", (1, 1, d))
    p.add("Transformer/posembed_input/pos_embedding", "vit.embeddings.position_embeddings", (1, 17, d))
    p.both("embedding", "vit.embeddings.patch_embeddings.projection", (d, 3, 4, 4), "conv")
    for i in range(12):
        a, b = f"Transformer/encoderblock_{i}", f"vit.encoder.layer.{i}"
        m = f"{a}/MultiHeadDotProductAttention_1"
        for n in ("query", "key", "value"):
            p.add(f"{m}/{n}/kernel", f"{b}.attention.attention.{n}.weight", (d, d), "heads_in", heads=heads)
            p.add(f"{m}/{n}/bias", f"{b}.attention.attention.{n}.bias", (d,), "heads", heads=heads)
        p.add(f"{m}/out/kernel", f"{b}.attention.output.dense.weight", (d, d), "heads_out", heads=heads)
        p.add(f"{m}/out/bias", f"{b}.attention.output.dense.bias", (d,))
        p.norm(f"{a}/LayerNorm_0", f"{b}.layernorm_before", d, scale="scale", shift="bias")
        p.norm(f"{a}/LayerNorm_2", f"{b}.layernorm_after", d, scale="scale", shift="bias")
        p.both(f"{a}/MlpBlock_3/Dense_0", f"{b}.intermediate.dense", (4 * d, d), "linear")
        p.both(f"{a}/MlpBlock_3/Dense_1", f"{b}.output.dense", (d, 4 * d), "linear")
    p.norm("Transformer/encoder_norm", "vit.layernorm", d, scale="scale", shift="bias")
    p.both("head", "classifier", (10, d), "linear")
    return p
