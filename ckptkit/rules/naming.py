"""A tensor's name taken apart: its numbers, its words, the layer it belongs to and what it is there.

Frameworks differ in spelling (`kernel` and `weight`, `attention` and `attn`), not in what they name; the
tables here are what is known of that.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from ckptkit.base.tensors import TensorSpec

Kind = Literal["kernel", "bias", "scale", "mean", "variance", "counter", "parameter"]
"""What a tensor is in its layer; a ``parameter`` has a name of its own."""

Role = Literal["kernel", "batch norm", "norm", "vector", "other"]
"""What a layer is, as far as its tensors tell."""

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("kernel", "weight", "weights", "w"), "kernel"),
    **dict.fromkeys(("embedding", "embeddings", "embedding_table"), "kernel"),
    **dict.fromkeys(("depthwise_kernel", "depthwise_weights", "pointwise_kernel"), "kernel"),
    **dict.fromkeys(("bias", "biases", "b", "beta", "offset"), "bias"),
    **dict.fromkeys(("gamma", "scale", "g"), "scale"),
    **dict.fromkeys(("running_mean", "moving_mean", "mean"), "mean"),
    **dict.fromkeys(("running_var", "moving_variance", "moving_var", "var", "variance"), "variance"),
    "num_batches_tracked": "counter",
}  # fmt: skip

_INPUT_FIRST = frozenset(
    {
        "kernel",
        "depthwise_kernel",
        "pointwise_kernel",
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
        "embeddings",
    }
)
_OUTPUT_FIRST = frozenset({"weight", "running_mean", "running_var", "num_batches_tracked"})
"""Last words of names that tell which axis order a file has: TensorFlow, Keras and JAX, or PyTorch."""

_ALIKE = (
    "attention attn self_attention msa mha selfattention",
    "query q wq toq theta",
    "key k wk tok phi",
    "value v wv tov",
    "dense linear fc lin",
    "output out o proj project projection pwl toout",
    "embedding embed embeddings emb wte embedder",
    "position pos positional posembed wpe",
    "layer layers h blocks block blk encoderblock unit",
    "norm ln layernorm layernormalization normalization bn batchnorm batchnormalization groupnorm gn rmsnorm",
    "conv convolution conv2d conv1d convolutional",
    "mlp ffn ff feedforward mixing densereludense mlpblock",
    "token tokens tok word words",
    "channel channels",
    "downsample shortcut downsampling",
    "head classifier logits predictions classification prediction",
    "depthwise dwconv dw depth",
    "pointwise pwconv pw",
    "expand expansion",
    "reduce squeeze",
    "se squeezeexcite squeezeexcitation",
    "encoder enc", "decoder dec",
    "stage stages level",
    "gate gating router",
    "expert experts",
    "relative rel",
    "intermediate inner",
    "final last",
    "up wi", "down wo",
    "stem patch root",
    "pre before",
)  # fmt: skip
_SAME_WORD = {word: line.split()[0] for line in _ALIKE for word in line.split()}
_OPPOSED = (
    "pre post",
    "up down",
    "in out",
    "input output",
    "encoder decoder",
    "query key value",
    "start end",
    "student teacher",
)
OPPOSED = {word: frozenset(line.split()) - {word} for line in _OPPOSED for word in line.split()}
"""Words that cannot mean the same layer."""
_EMPTY = frozenset(
    {
        "",
        "vars",
        "params",
        "variables",
        "net",
        "model",
        "module",
        "layers",
        "attributes",
        "variable",
        "tensor",
    }
)
"""Words that tell nothing."""

_ENDINGS: tuple[tuple[str, Kind], ...] = (
    *((f"_{leaf}", "kernel") for leaf in ("weight", "weights", "kernel")),
    *((f"_{leaf}", "bias") for leaf in ("bias", "biases")),
)
_STARTS: tuple[tuple[str, Kind], ...] = (("weight_", "kernel"), ("bias_", "bias"))
_CLASSES = frozenset(
    {
        *(f"{kind}conv{rank}d" for kind in ("", "separable_", "depthwise_") for rank in (1, 2, 3)),
        *(f"conv{rank}d_transpose" for rank in (1, 2, 3)),
        *("dense", "einsum_dense", "embedding", "multi_head_attention", "batch_normalization"),
        *("layer_normalization", "group_normalization", "unit_normalization", "lstm", "gru"),
    }
)
"""What Keras calls layers that were given no name."""

_VECTORS: dict[int, tuple[Kind, ...]] = {
    1: ("scale",),
    2: ("scale", "bias"),
    3: ("bias", "mean", "variance"),  # a batch norm without a scale
    4: ("scale", "bias", "mean", "variance"),
}
"""What the vectors are that a Keras layer without a kernel has, by their number: its files do not say it."""

_PIECE = re.compile(r"(?<![0-9])[0-9]{1,15}(?![0-9])")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_END = re.compile(r"(:[0-9]+|/\.ATTRIBUTES/VARIABLE_VALUE)$")
_LETTER = re.compile(r"(?<=[0-9])(?<!conv[0-9])(?<!pool[0-9])[a-j](?=[_./]|$)")
"""A letter that counts after a number: ``block2a``, ``block2b``."""
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original([01])$")
"""Weight norm's magnitude and direction, which PyTorch called ``weight_g`` and ``weight_v`` before."""
_VARS = re.compile(r"[./]vars[./][0-9]+$")
_SEPARATOR = re.compile(r"[./]")


@lru_cache(1 << 16)
def opened(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The text of a name between its numbers, and the numbers as they are written.

    >>> opened("block_07/conv2/w")
    (('block_', '/conv', '/w'), ('07', '2'))
    """
    return tuple(_PIECE.split(name)), tuple(_PIECE.findall(name))


@lru_cache(1 << 16)
def words(text: str) -> tuple[str, ...]:
    """The words of a name, each in the spelling that stands for all that mean the same.

    >>> words("encoder/SelfAttention/to_q")
    ('encoder', 'attention', 'to', 'query')
    """
    found = []
    for part in re.split(r"[^A-Za-z]+", text):
        lower = part.lower()
        if lower in _SAME_WORD:
            found.append(_SAME_WORD[lower])
        else:
            found += [_SAME_WORD.get(word.lower(), word.lower()) for word in _WORD.findall(part)]
    for at, word in enumerate(found[:-1]):
        if (
            word in ("pre", "post") and found[at + 1] != "norm"
        ):  # what is after the attention is not the attention's
            found[at + 1] = f"{word}{found[at + 1]}"
    return tuple(word for word in found if word not in _EMPTY)


@dataclass
class Layer:
    """The tensors of a file that belong together: a kernel with its bias, a norm with its statistics."""

    path: str
    parts: dict[Kind, TensorSpec] = field(default_factory=dict)
    place: int = 0  # in the file
    number: int = 0  # among the layers of its side

    @cached_property
    def role(self) -> Role:
        """What it is."""
        if "kernel" in self.parts:
            return "kernel"
        if "mean" in self.parts or "variance" in self.parts:
            return "batch norm"
        if len(self.parts) == 1:
            return "vector"
        return "norm" if "scale" in self.parts and "bias" in self.parts else "other"

    @cached_property
    def core(self) -> Kind:
        """The part by whose size layers are paired."""
        order: tuple[Kind, ...] = ("kernel", "scale", "parameter", "bias", "mean", "variance", "counter")
        return next(kind for kind in order if kind in self.parts)

    @cached_property
    def size(self) -> int:
        """Elements of that part."""
        return self.parts[self.core].size

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """Its path without numbers."""
        return opened(self.path)[0]

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The numbers."""
        return tuple(int(text) for text in opened(self.path)[1])

    @cached_property
    def is_counted(self) -> bool:
        """Whether its number only counts layers of its class, as Keras does: in the order of their making."""
        return any(part.rpartition("_")[0] in _CLASSES for part in _SEPARATOR.split(self.path))

    @cached_property
    def is_table(self) -> bool:
        """Whether its rows are looked up, not multiplied, so that every framework orders its axes alike."""
        spec = self.parts[self.core]
        name = f"{self.path}/{spec.name}".lower()
        if sum(n != 1 for n in spec.shape) > 3 or name.endswith("kernel"):
            return False
        return bool(
            re.search(r"emb(?!edder)|wte|wpe|pos_|token_|_table|relative|shared\b", name)
        ) and not re.search(r"proj|patch|dense|conv", name)


def layers_of(specs: Mapping[str, TensorSpec], called: Mapping[str, str] | None = None) -> list[Layer]:
    """The layers of a file, in its order; ``called`` are better names for some tensors."""
    names = _numbered({name: (called or {}).get(name, name) for name in specs})
    if len(set(names.values())) < len(names):  # layers of one name in several places
        twice = {text for text, count in Counter(names.values()).items() if count > 1}
        plain = _numbered({name: name for name in specs})
        names = {name: plain[name] if text in twice else text for name, text in names.items()}
    split = {name: _leaf(names[name], spec) for name, spec in specs.items()}
    split = _separate(split, specs)
    found: dict[str, Layer] = {}
    for place, (name, (path, kind)) in enumerate(split.items()):
        layer = found.setdefault(path, Layer(path, place=place, number=len(found)))
        if kind in layer.parts:  # two of a kind: each is a layer of its own
            layer = found.setdefault(names[name], Layer(names[name], place=place, number=len(found)))
        layer.parts[kind] = specs[name]
    return list(found.values())


def _numbered(names: Mapping[str, str]) -> dict[str, str]:
    """Names with the number that Keras leaves out for the first of a kind: ``conv``, ``conv_1``."""
    plain = {
        name: _LETTER.sub(_counted, _PARAMETRIZED.sub(_of_weight_norm, _END.sub("", text)))
        for name, text in names.items()
    }
    follows: set[tuple[str, str]] = set()
    for name in plain.values():
        parts = _SEPARATOR.split(name)
        for at, part in enumerate(parts):
            if part.endswith("_1"):
                follows.add(("/".join(parts[:at]), part.removesuffix("_1")))
    if not follows:
        return plain
    numbered = {}
    for name, text in plain.items():
        parts = _SEPARATOR.split(text)
        given = [
            f"{part}_0" if ("/".join(parts[:at]), part) in follows else part for at, part in enumerate(parts)
        ]
        numbered[name] = "/".join(given) if given != parts else text
    return numbered


def _of_weight_norm(found: re.Match[str]) -> str:
    return f"{found[1]}_{'gv'[int(found[2])]}"


def _counted(letter: re.Match[str]) -> str:
    """The number of a letter that counts, with what parts it from the one before."""
    return f"_{ord(letter[0]) - ord('a')}"


def _leaf(name: str, spec: TensorSpec) -> tuple[str, Kind]:
    """The layer of a tensor and what it is there."""
    parent, leaf = _parted(name)
    if parent.endswith(("/vars", ".vars")) and leaf.isdigit():
        return parent[:-5], "kernel" if len(spec.shape) > 1 else "parameter"  # see `_of_keras`
    kind = _KINDS.get(leaf)
    if kind is None:
        for ending, what in _ENDINGS:
            if (
                leaf.endswith(ending)
                and len(leaf) > len(ending)
                and (what == "kernel" or len(spec.shape) < 2)
            ):
                return _joined(parent, leaf.removesuffix(ending)), _ranked(what, spec)
        for start, what in _STARTS:
            if leaf.startswith(start):
                return _joined(parent, leaf.removeprefix(start)), _ranked(what, spec)
        return name, "kernel" if sum(n != 1 for n in spec.shape) > 1 else "parameter"
    return parent or name, _ranked(kind, spec)


def _ranked(kind: Kind, spec: TensorSpec) -> Kind:
    """A weight of one axis is a norm's scale."""
    return "scale" if kind == "kernel" and len(spec.shape) < 2 else kind


def _parted(name: str) -> tuple[str, str]:
    at = max(name.rfind("/"), name.rfind("."))
    return (name[:at], name[at + 1 :]) if at > 0 else ("", name)


def _joined(parent: str, leaf: str) -> str:
    return f"{parent}/{leaf}" if "/" in parent else f"{parent}.{leaf}" if parent else leaf


def _separate(
    split: dict[str, tuple[str, Kind]], specs: Mapping[str, TensorSpec]
) -> dict[str, tuple[str, Kind]]:
    """Two kernels of one layer are layers of their own, as those of a separable convolution."""
    by_layer: defaultdict[str, list[str]] = defaultdict(list)
    for name, (path, _) in split.items():
        by_layer[path].append(name)
    result = dict(split)
    for names in by_layer.values():
        result |= _of_keras(names, specs, split[names[0]][0])
        kinds = [result[name][1] for name in names]
        if kinds.count("kernel") > 1:
            result |= {name: (name, "kernel") for name in names if result[name][1] == "kernel"}
        if "mean" in kinds and "variance" not in kinds:
            result |= {name: (name, "parameter") for name in names if result[name][1] == "mean"}
    return result


def _of_keras(names: list[str], specs: Mapping[str, TensorSpec], path: str) -> dict[str, tuple[str, Kind]]:
    """What the variables of a layer are that a Keras file numbers."""
    numbered = [name for name in names if _VARS.search(name)]
    ranks = [len(specs[name].shape) for name in numbered]
    kinds: Sequence[Kind] | None
    if max(ranks, default=0) < 2:
        kinds = _VECTORS.get(len(numbered))
    else:
        lower = sum(rank < max(ranks) for rank in ranks)
        kinds = ["kernel" if rank == max(ranks) else "bias" if lower == 1 else "parameter" for rank in ranks]
    return dict(zip(numbered, ((path, kind) for kind in kinds), strict=True)) if kinds else {}


def axis_order(specs: Iterable[str]) -> Literal["input first", "output first"] | None:
    """How kernels of a file are ordered, as far as its names tell.

    >>> axis_order(["a/kernel", "a/bias"]), axis_order(["a.weight"]), axis_order(["w"])
    ('input first', 'output first', None)
    """
    leaves = [_parted(_END.sub("", name))[1] for name in specs]
    first = sum(leaf in _INPUT_FIRST or leaf.isdigit() for leaf in leaves)  # Keras numbers variables
    last = sum(leaf in _OUTPUT_FIRST for leaf in leaves)
    if first == last:
        return None
    return "output first" if last > first else "input first"
