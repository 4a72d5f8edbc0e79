"""What the MOAT tests compare with: the deterministic weights and the recorded outputs of the published code.

Nothing here imports ckptkit: the recipe below and the files of ``tests/golden/moat`` are the independent side
of every comparison. Recorded arrays are channels-last, as the published TensorFlow code made them.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GOLDEN_FOLDER = Path(__file__).resolve().parent.parent / "golden" / "moat"

GOLDEN_CASES: dict[str, tuple[str, bool, int]] = {
    "tiny_moat0_pe_256_pool2": ("tiny-moat0", True, 256),
    "tiny_moat0_nope_256_pool2": ("tiny-moat0", False, 256),
    "tiny_moat0_pe_384_pool2": ("tiny-moat0", True, 384),
    "moat0_pe_224_pool2": ("moat0", True, 224),
}
"""Case name -> variant, position embedding, input side. All have batch 2, 1000 classes and pool size 2."""

UNITS_VARIANT = "tiny-moat0"
"""Variant whose recipe weights (with position embedding) the unit cases were recorded with."""

INPUT_KEY = 20260101

_CLOSE_TO_ONE = {"gamma": (1.0, 0.1), "beta": (0.0, 0.1), "moving_mean": (0.0, 0.1)}


def philox_normal(key: int, shape: tuple[int, ...]) -> Array:
    """Return standard normal float32 numbers, the same on every machine."""
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal(shape, dtype=np.float32)


def recipe_tensor(name: str, shape: tuple[int, ...], *, key_suffix: str = "") -> Array:
    """Return the deterministic value of one tensor, by its deeplab2 name.

    Parameters
    ----------
    name : str
        deeplab2 name.
    shape : tuple of int
        deeplab2 shape: kernels HWIO, depthwise HWC1, q/k/v ``[C, heads, 32]``, o ``[heads, 32, C]``.
    key_suffix : str
        ``#raw`` for the raw twin of a file that has moving averages too.
    """
    shape = tuple(shape)
    z = philox_normal(zlib.crc32((name + key_suffix).encode()), shape)
    leaf = name.rsplit("/", 1)[-1]
    if leaf in _CLOSE_TO_ONE:
        centre, spread = _CLOSE_TO_ONE[leaf]
        return np.float32(centre) + np.float32(spread) * z
    if leaf == "moving_variance":
        return np.exp(np.float32(0.2) * z)
    if leaf == "bias" or len(shape) <= 1:
        return np.float32(0.05) * z
    if leaf == "relative_position_embedding":
        return np.float32(0.5) * z
    return z / np.float32(math.sqrt(_fan_in(name, shape)))


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    """Return how many products one output of the tensor sums up."""
    *_, layer, leaf = name.split("/")
    if leaf == "depthwise_kernel":
        return shape[0] * shape[1]
    if leaf == "kernel":
        return shape[0] * shape[1] * shape[2]
    if leaf == "weight" and layer in ("q", "k", "v"):
        return shape[0]
    if leaf == "weight" and layer == "o":
        return shape[0] * shape[1]
    raise ValueError(f"the recipe says nothing of {name}")


@lru_cache(maxsize=1)
def moat_variables() -> dict[str, dict[str, Any]]:
    """Return ``moat_variables.json``: names, shapes and parameter counts of the nine variants."""
    with (GOLDEN_FOLDER / "moat_variables.json").open(encoding="utf-8") as file:
        loaded: dict[str, dict[str, Any]] = json.load(file)
    return loaded


def variable_shapes(variant: str, pos_emb: bool = True) -> dict[str, tuple[int, ...]]:
    """Return deeplab2 name -> shape of every variable of a variant, statistics included."""
    return {
        name: tuple(shape)
        for name, shape, _trainable in moat_variables()[variant]["variables"]
        if pos_emb or not name.endswith("relative_position_embedding")
    }


def parameter_count(variant: str, pos_emb: bool = True) -> int:
    """Return the exact number of trainable parameters, 1000-class head included."""
    key = "trainable_parameters" if pos_emb else "trainable_parameters_noposemb"
    return int(moat_variables()[variant][key])


@lru_cache(maxsize=4)
def recipe_weights(variant: str, pos_emb: bool = True) -> Mapping[str, Array]:
    """Return deeplab2 name -> recipe value of every variable of a variant; the arrays are read-only."""
    weights = {name: recipe_tensor(name, shape) for name, shape in variable_shapes(variant, pos_emb).items()}
    for array in weights.values():
        array.setflags(write=False)
    return weights


def golden_input(height: int, width: int) -> Array:
    """Return the two images the golden files were recorded with, (2, height, width, 3)."""
    return philox_normal(INPUT_KEY, (2, height, width, 3))


@dataclass(frozen=True)
class GoldenCase:
    """One recorded forward pass.

    ``arrays`` holds ``logits`` (2, 1000), for K = 1..5 ``stageK_shape``, ``stageK_mean``, ``stageK_std``,
    ``stageK_row0_ch0`` = out[:, 0, :8, 0], ``stageK_channel_mean`` (2, C), ``resK_row0_ch0`` = GELU of it,
    and for the tiny variant ``stage5`` whole (2, h, w, C).
    """

    name: str
    variant: str
    pos_emb: bool
    height: int
    width: int
    pool_size: int
    arrays: Mapping[str, Array]

    @property
    def logits(self) -> Array:
        """Recorded logits, (2, 1000)."""
        return self.arrays["logits"]

    @property
    def input(self) -> Array:
        """Recorded input, (2, height, width, 3)."""
        return golden_input(self.height, self.width)


@lru_cache(maxsize=8)
def load_golden(case: str) -> GoldenCase:
    """Return one of `GOLDEN_CASES`."""
    variant, pos_emb, _side = GOLDEN_CASES[case]
    with np.load(GOLDEN_FOLDER / f"golden_{case}.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    return GoldenCase(case, variant, pos_emb, meta["h"], meta["w"], meta["pool_size"], arrays)


@dataclass(frozen=True)
class UnitCase:
    """One recorded block of tiny-moat0 with recipe weights, fed with random features.

    Parameters
    ----------
    name : str
        ``full_block_02_00`` (whole-map windows, pool size 2) or ``win12_…`` (windows 12 and 6, pool size 3).
    stage, block : int
    stride, pool_size : int
    window : tuple of int or None
        Attention window (h, w); None in MBConv blocks.
    input : numpy.ndarray
        Channels-last input of the block.
    step : tuple of int
        ``slice`` is output[:, ::step[0], ::step[1], :].
    slice : numpy.ndarray
        Recorded part of the block's output.
    out_std : float
        Standard deviation of the whole output.
    attention_input, attention : numpy.ndarray or None
        Input (N, h, w, C) of the attention layer alone, and its recorded output (N, h·w, C)[:, ::7].
    bias_head0_row0, bias_lasthead_row_mid : numpy.ndarray or None
        Position bias of head 0 and query 0, and of the last head and query h·w // 2, over the h·w keys.
    """

    name: str
    stage: int
    block: int
    stride: int
    pool_size: int
    window: tuple[int, int] | None
    input: Array
    output_shape: tuple[int, ...]
    step: tuple[int, int]
    slice: Array
    out_std: float
    attention_input: Array | None = None
    attention: Array | None = None
    bias_head0_row0: Array | None = None
    bias_lasthead_row_mid: Array | None = None


@lru_cache(maxsize=1)
def load_units() -> dict[str, UnitCase]:
    """Return every recorded unit case by name."""
    with (GOLDEN_FOLDER / "golden_units_info.json").open(encoding="utf-8") as file:
        info: dict[str, dict[str, Any]] = json.load(file)
    with np.load(GOLDEN_FOLDER / "golden_units_tiny_moat0_pe.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "meta"}
    return {name: _unit(name, facts, arrays) for name, facts in info.items()}


def _unit(name: str, facts: dict[str, Any], arrays: Mapping[str, Array]) -> UnitCase:
    _group, _word, stage, block = name.split("_")
    inner = facts.get("attention")
    first, second = facts["subsample_step"]
    return UnitCase(
        name=name,
        stage=int(stage),
        block=int(block),
        stride=facts["stride"],
        pool_size=facts["pool_size"],
        window=tuple(facts["window"]) if facts["window"] else None,
        input=philox_normal(facts["philox_key"], tuple(facts["input_shape"])),
        output_shape=tuple(facts["output_shape"]),
        step=(first, second),
        slice=arrays[f"{name}_slice"],
        out_std=facts["out_std"],
        attention_input=philox_normal(inner["philox_key"], tuple(inner["input_shape"])) if inner else None,
        attention=arrays.get(f"{name}_attention"),
        bias_head0_row0=arrays.get(f"{name}_pe_head0_row0"),
        bias_lasthead_row_mid=arrays.get(f"{name}_pe_lasthead_row_mid"),
    )
