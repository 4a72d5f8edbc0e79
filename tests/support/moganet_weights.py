"""What the MogaNet tests compare with: deterministic weights and recorded outputs of the published code.

Nothing here imports ckptkit: the table of tensors is written from the published architecture, and with the
files of ``tests/golden/moganet`` it is the independent side of every comparison. Names and axes are those of
the timm-style release, which are ckptkit's canonical ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

GOLDEN_FOLDER = Path(__file__).resolve().parent.parent / "golden" / "moganet"

INPUT_KEY = 20260101

VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "moganet-xt": ((32, 64, 96, 192), (3, 3, 10, 2), (8, 8, 4, 4)),
    "moganet-t": ((32, 64, 128, 256), (3, 3, 12, 2), (8, 8, 4, 4)),
    "moganet-s": ((64, 128, 320, 512), (2, 3, 12, 2), (8, 8, 4, 4)),
    "moganet-b": ((64, 160, 320, 512), (4, 6, 22, 3), (8, 8, 4, 4)),
    "moganet-l": ((64, 160, 320, 640), (4, 6, 44, 4), (8, 8, 4, 4)),
    "moganet-xl": ((96, 192, 480, 960), (6, 6, 44, 4), (8, 8, 4, 4)),
}
"""Variant -> widths, depths and feed-forward ratios of the four stages."""

PARAMETER_COUNTS = {
    "moganet-xt": 2_956_066,
    "moganet-t": 5_197_332,
    "moganet-s": 25_335_675,
    "moganet-b": 43_720_475,
    "moganet-l": 82_480_978,
    "moganet-xl": 180_991_924,
}
"""Exact number of trainable parameters, 1000-class head included."""


class TensorRow(NamedTuple):
    """One line of a variant's ``state_dict``."""

    name: str
    shape: Shape
    dtype: str
    kind: str


def _conv(name: str, *shape: int) -> Iterator[TensorRow]:
    yield TensorRow(f"{name}.weight", shape, "float32", "parameter")
    yield TensorRow(f"{name}.bias", shape[:1], "float32", "parameter")


def _batch_norm(name: str, width: int) -> Iterator[TensorRow]:
    for leaf in ("weight", "bias"):
        yield TensorRow(f"{name}.{leaf}", (width,), "float32", "parameter")
    for leaf in ("running_mean", "running_var"):
        yield TensorRow(f"{name}.{leaf}", (width,), "float32", "buffer")
    yield TensorRow(f"{name}.num_batches_tracked", (), "int64", "buffer")


def _scale(name: str, width: int) -> TensorRow:
    return TensorRow(name, (1, width, 1, 1), "float32", "parameter")


def _block(name: str, width: int, hidden: int) -> Iterator[TensorRow]:
    yield _scale(f"{name}.layer_scale_1", width)
    yield _scale(f"{name}.layer_scale_2", width)
    yield from _batch_norm(f"{name}.norm1", width)
    yield from _conv(f"{name}.attn.proj_1", width, width, 1, 1)
    yield from _conv(f"{name}.attn.gate", width, width, 1, 1)
    yield from _conv(f"{name}.attn.value.DW_conv0", width, 1, 5, 5)
    yield from _conv(f"{name}.attn.value.DW_conv1", width * 3 // 8, 1, 5, 5)
    yield from _conv(f"{name}.attn.value.DW_conv2", width * 4 // 8, 1, 7, 7)
    yield from _conv(f"{name}.attn.value.PW_conv", width, width, 1, 1)
    yield from _conv(f"{name}.attn.proj_2", width, width, 1, 1)
    yield _scale(f"{name}.attn.sigma.scale", width)
    yield from _batch_norm(f"{name}.norm2", width)
    yield from _conv(f"{name}.mlp.fc1", hidden, width, 1, 1)
    yield from _conv(f"{name}.mlp.dwconv", hidden, 1, 3, 3)
    yield from _conv(f"{name}.mlp.fc2", width, hidden, 1, 1)
    yield from _conv(f"{name}.mlp.decompose", 1, hidden, 1, 1)
    yield _scale(f"{name}.mlp.sigma.scale", hidden)


def _rows(variant: str, num_classes: int | None) -> Iterator[TensorRow]:
    before = 0
    for stage, (width, depth, ratio) in enumerate(zip(*VARIANTS[variant], strict=True), start=1):
        patch = f"patch_embed{stage}"
        if stage == 1:
            yield from _conv(f"{patch}.projection.0", width // 2, 3, 3, 3)
            yield from _batch_norm(f"{patch}.projection.1", width // 2)
            yield from _conv(f"{patch}.projection.3", width, width // 2, 3, 3)
            yield from _batch_norm(f"{patch}.projection.4", width)
        else:
            yield from _conv(f"{patch}.projection", width, before, 3, 3)
            yield from _batch_norm(f"{patch}.norm", width)
        for block in range(depth):
            yield from _block(f"blocks{stage}.{block}", width, ratio * width)
        yield from _batch_norm(f"norm{stage}", width)
        before = width
    if num_classes is not None:
        yield from _conv("head", num_classes, before)


@lru_cache(maxsize=16)
def tensor_rows(variant: str, *, num_classes: int | None = 1000) -> tuple[TensorRow, ...]:
    """Return name, shape, dtype and kind of every tensor of a variant, in the published order."""
    return tuple(_rows(variant, num_classes))


def recipe_tensor(name: str, shape: Shape, *, key_suffix: str = "", is_batch_norm: bool = False) -> Array:
    """Return the deterministic value of one tensor.

    Parameters
    ----------
    name : str
        Name in the timm-style release.
    shape : tuple of int
    key_suffix : str
        ``#raw`` for the raw twin of a file that has moving averages too.
    is_batch_norm : bool
        Whether the tensor is of a BatchNorm, whose weight and bias have a recipe of their own.
    """
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.array(1000, np.int64)
    z = philox_normal(zlib.crc32((name + key_suffix).encode()), shape)
    if leaf == "running_var":
        return np.exp(np.float32(0.2) * z)
    if leaf == "running_mean" or (is_batch_norm and leaf == "bias"):
        return np.float32(0.1) * z
    if is_batch_norm:
        return np.float32(1.0) + np.float32(0.1) * z
    if leaf == "bias":
        return np.float32(0.05) * z
    if leaf in ("layer_scale_1", "layer_scale_2", "scale"):
        return np.float32(0.2) * z
    return z / np.float32(math.sqrt(math.prod(shape[1:])))


def recipe_state(variant: str, *, num_classes: int | None = 1000, key_suffix: str = "") -> dict[str, Array]:
    """Return the recipe's value of every tensor of a variant, by canonical name, in the published order.

    Float32, but int64 scalars for ``num_batches_tracked``. The arrays are the caller's own.
    """
    rows = tensor_rows(variant, num_classes=num_classes)
    norms = {row.name.removesuffix("running_mean") for row in rows if row.name.endswith(".running_mean")}
    return {
        row.name: recipe_tensor(
            row.name,
            row.shape,
            key_suffix=key_suffix,
            is_batch_norm=row.name[: row.name.rindex(".") + 1] in norms,
        )
        for row in rows
    }


def philox_normal(key: int, shape: Shape) -> Array:
    """Return standard normal float32 numbers, the same on every machine."""
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal(shape, dtype=np.float32)


def golden_input(height: int, width: int) -> Array:
    """Return the two images the golden files were recorded with, channels last, (2, height, width, 3)."""
    return philox_normal(INPUT_KEY, (2, height, width, 3))


@dataclass(frozen=True)
class GoldenCase:
    """One recorded forward pass of the published code; every map in it is NCHW.

    ``arrays`` holds ``logits`` (2, 1000), for K = 1..4 ``stageK_shape``, ``stageK_mean``, ``stageK_std``,
    ``stageK_first8`` = out[0, 0, 0, :8] and ``stageK_chan_mean`` (C,) after ``normK``, ``patchK_mean``,
    ``patchK_std`` and ``patchK_first8`` after the patch embedding, ``pooled`` (2, C), and ``logits_f64``
    where the pass was made in float64 too.
    """

    name: str
    variant: str
    side: int
    attn_force_fp32: bool
    arrays: Mapping[str, Array]

    @property
    def logits(self) -> Array:
        """Recorded logits, (2, 1000)."""
        return self.arrays["logits"]

    @property
    def input(self) -> Array:
        """Recorded input, channels last, (2, side, side, 3)."""
        return golden_input(self.side, self.side)


GOLDEN_CASES: dict[str, tuple[str, int, bool]] = {
    "xtiny_224_plain": ("moganet-xt", 224, False),
    "xtiny_224_fp32gate": ("moganet-xt", 224, True),
    "tiny_256_plain": ("moganet-t", 256, False),
    "small_224_fp32gate": ("moganet-s", 224, True),
}
"""Case name -> variant, input side, attn_force_fp32."""


@lru_cache(maxsize=4)
def load_golden(case: str) -> GoldenCase:
    """Return one of `GOLDEN_CASES`."""
    variant, side, attn_force_fp32 = GOLDEN_CASES[case]
    with np.load(GOLDEN_FOLDER / f"golden_{case}.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return GoldenCase(case, variant, side, attn_force_fp32, arrays)


@lru_cache(maxsize=1)
def published_state_dicts() -> dict[str, dict[str, Any]]:
    """Return variant -> ``tensors``, ``parameters`` and ``sha256`` (a `fingerprint`), as published."""
    with (GOLDEN_FOLDER / "state_dicts.json").open(encoding="utf-8") as file:
        loaded: dict[str, dict[str, Any]] = json.load(file)
    return loaded


def fingerprint(rows: list[TensorRow] | tuple[TensorRow, ...]) -> str:
    """Return the SHA-256 of the lines ``name shape dtype kind``, in the order given.

    Shapes are written with commas and no spaces, a scalar's as ``-``.
    """
    lines = (f"{r.name} {','.join(map(str, r.shape)) or '-'} {r.dtype} {r.kind}\n" for r in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
