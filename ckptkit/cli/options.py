"""Choices that several commands offer."""

from __future__ import annotations

from enum import Enum


class FloatType(str, Enum):
    """Element types a conversion can cast floating tensors to."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class WhichWeights(str, Enum):
    """Which copy to take where a file holds both."""

    AUTO = "auto"
    EMA = "ema"
    RAW = "raw"
