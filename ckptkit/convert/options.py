"""What a conversion should make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import UsageError
from ckptkit.base.tensors import FLOAT_DTYPES
from ckptkit.formats.base import Weights
from ckptkit.formats.builtin import BUILT_IN, format_of
from ckptkit.formats.names import FORMATS

if TYPE_CHECKING:
    from ckptkit.rules.file import RuleFile

AS_IS = "as-is"
"""What stands in place of a layout where only the container changes: see `ckptkit.convert.as_is`."""


@dataclass(frozen=True)
class Options:
    """What a conversion should make.

    Parameters
    ----------
    to : str
        Name of a format: `ckptkit.formats.base.Format.name`.
    layout : str, optional
        Default: the family's usual one for that format; ``as-is`` keeps names and axes, of any model.
    dtype : str, optional
        ``float32``, ``float16`` or ``bfloat16`` for all floating tensors; default: as they are.
    weights : {"auto", "ema", "raw"}
        Which copy where the source holds both.
    head : bool
        False leaves the classification head out.
    allow_missing_bn : bool
        Convert a file that lacks all BatchNorm statistics (MOAT's first uploads).
    variant : str, optional
        Overrides what the file is recognised as.
    max_shard_size : int, optional
        Split a safetensors output into shards of at most so many bytes.
    settings : mapping of str to Any
        Behaviour settings (``attn_force_fp32`` …) to write into the metadata, before the entry's and the
        file's.
    resolution : (int, int), optional
        Resize position tables for an input of this height and width in pixels, as the models do it at run
        time (bilinear, half-pixel centres, no antialias, edges clamped, in float32), so that code that does
        not resize can use them.
    rules : RuleFile, optional
        A user's own names and axis orders, instead of a layout: see `ckptkit.rules.file`.
    """

    to: str
    layout: str | None = None
    dtype: str | None = None
    weights: Weights = "auto"
    head: bool = True
    allow_missing_bn: bool = False
    variant: str | None = None
    max_shard_size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    resolution: tuple[int, int] | None = None
    rules: RuleFile | None = None


def check_target(options: Options) -> None:
    """Raise UsageError when format, dtype or shards asked for are none, whatever the source."""
    target = format_of(options.to)
    if target.read_only:
        raise UsageError(f"{target.name} files are read, not written: {target.read_only}")
    if options.dtype is not None and options.dtype not in FLOAT_DTYPES:
        raise UsageError(
            f"no dtype {options.dtype!r} to convert to", hint="one of " + ", ".join(FLOAT_DTYPES)
        )
    if options.max_shard_size is not None and not target.shards:
        able = " and ".join(name for name in FORMATS if BUILT_IN[name].shards)
        raise UsageError(f"--max-shard-size has no meaning for {options.to}", hint=f"only {able} has shards")
