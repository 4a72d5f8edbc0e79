"""Images a second of a model in ONNX Runtime, against the plain PyTorch one and against `torch.compile`.

    python tests/benchmarks/bench_inference.py --variant moat0 --resolution 224 --runs 15
    python tests/benchmarks/bench_inference.py --variant moganet-s --threads 2 --compile

One process; the models are called in turn, after two unmeasured calls of each. Weights are the deterministic
ones of `ckptkit synth`, images are random. Printed are medians, the ratio of each model's images/s to the
plain one's, and the largest difference of its logits to the plain model's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckptkit.families.base import family_of_variant
from ckptkit.models import create_model
from ckptkit.models.synth import Synthetic, write_bundle, write_file

PLAIN = "plain"


@dataclass
class Calls:
    """Seconds of every measured call of one model, and what it computes."""

    logits: Tensor
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def build(arguments: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """The models to compare, by name, the plain one first."""
    options: dict[str, Any] = {"checkpoint": checkpoint, "resolution": arguments.resolution}
    if family_of_variant(arguments.variant).name == "moganet":
        options["attn_force_fp32"] = arguments.fp32_gate
    models = {PLAIN: create_model(arguments.variant, **options)}
    quick = create_model(arguments.variant, "onnxruntime", **options)
    models["onnxruntime"] = lambda images: torch.from_numpy(quick(images))
    if arguments.compile:
        models["compiled"] = create_model(arguments.variant, compile=True, **options)
    if arguments.channels_last:
        models["channels_last"] = create_model(arguments.variant, **options).to(
            memory_format=torch.channels_last
        )
    return models


def in_turn(models: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor, runs: int) -> dict[str, Calls]:
    """Call every model twice unmeasured (memory, compilation), then all of them in turn."""
    calls = {}
    for name, model in models.items():
        model(images)
        calls[name] = Calls(model(images).clone())
    for _ in range(runs):
        for name, model in models.items():
            start = time.perf_counter()
            model(images)
            calls[name].seconds.append(time.perf_counter() - start)
    return calls


def report(calls: Mapping[str, Calls], batch: int) -> dict[str, dict[str, object]]:
    """Print one batch size's figures; returns what to keep of them."""
    plain = calls[PLAIN]
    kept: dict[str, dict[str, object]] = {}
    print(f"batch {batch}")
    for name, own in calls.items():
        ratio = plain.median / own.median
        difference = float((own.logits - plain.logits).abs().max())
        every = " ".join(f"{second:.3f}" for second in own.seconds)
        print(
            f"  {name:22} {batch / own.median:7.2f} images/s   ratio {ratio:.2f}   "
            f"difference {difference:.1e}   [{every}] s",
            flush=True,
        )
        kept[name] = {
            "images_per_second": round(batch / own.median, 3),
            "ratio": round(ratio, 3),
            "max_difference": difference,
            "all_s": [round(second, 4) for second in own.seconds],
        }
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="moat0")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp32-gate", action="store_true", help="MogaNet with attn_force_fp32=True")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (minutes before it runs)")
    parser.add_argument("--channels-last", action="store_true", help="also the plain model, channels last")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        synthetic = Synthetic(arguments.variant)
        checkpoint = Path(folder) / "model"
        if family_of_variant(arguments.variant).name == "moat":
            write_bundle(synthetic, checkpoint)
        else:
            checkpoint = write_file(synthetic, checkpoint.with_suffix(".pth"))
        models = build(arguments, checkpoint)
    side = arguments.resolution
    print(f"{arguments.variant} at {side}, torch {torch.__version__}, {arguments.threads} threads")
    generator = torch.Generator().manual_seed(1)
    figures = {}
    with torch.inference_mode():
        for batch in arguments.batches:
            images = torch.randn(batch, 3, side, side, generator=generator)
            figures[f"batch {batch}"] = report(in_turn(models, images, arguments.runs), batch)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
