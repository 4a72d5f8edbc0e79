"""Every direction of a conversion against the script one would write for it: time ratio and peak memory.

    python tests/benchmarks/bench_directions.py [--variant moat3] [--runs 5] [--only PART] [--json FILE]

Both sides are whole processes, run in turn in one session on the same files with the page cache warm and
the disk idle. ckptkit verifies every checksum its source has, syncs the result, reads it back and compares;
the scripts do what they do. Copies that change no axis order are compared with reading the file and writing
it in blocks of 1 MB, synced. Medians and their ratio; peak resident memory is the child's own, from `wait4`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from _common import (
    CKPTKIT,
    READ_WITH_TENSORFLOW,
    SYNTHETIC_BUNDLE,
    TF_TO_SAFETENSORS,
    alternate,
    as_json,
    cleaner,
    run,
    show,
)

TF_TO_TORCH = f"""{READ_WITH_TENSORFLOW}
import torch

torch.save({{name: torch.from_numpy(tensor) for name, tensor in state.items()}}, sys.argv[2])
"""

TORCH_TO_SAFETENSORS = """
import sys
import torch
from safetensors.torch import save_file

save_file(torch.load(sys.argv[1], mmap=True, weights_only=True), sys.argv[2])
"""

SAFETENSORS_TO_TORCH = """
import sys
import torch
from safetensors.torch import load_file

torch.save(load_file(sys.argv[1]), sys.argv[2])
"""

SAFETENSORS_TO_TF = """
import sys
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

state = {}
for name, tensor in load_file(sys.argv[1]).items():
    tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    state[name.replace(".", "/")] = np.ascontiguousarray(tensor)
names = sorted(state)
tf.raw_ops.SaveV2(
    prefix=sys.argv[2],
    tensor_names=names,
    shape_and_slices=[""] * len(names),
    tensors=[tf.convert_to_tensor(state[name]) for name in names],
)
"""

BLOCKS = """
import os
import sys

with open(sys.argv[1], "rb", buffering=0) as source, open(sys.argv[2], "wb", buffering=0) as target:
    while block := source.read(1 << 20):
        target.write(block)
    os.fsync(target.fileno())
"""


def directions(sources: dict[str, Path]) -> dict[str, tuple[str, str, list[str], str]]:
    """Name -> source, format to write, further options, the peer's script."""
    table = {
        "tf-safetensors": ("tf", "safetensors", [], TF_TO_SAFETENSORS),
        "tf-torch": ("tf", "torch", [], TF_TO_TORCH),
        "torch-safetensors": ("torch", "safetensors", [], TORCH_TO_SAFETENSORS),
        "safetensors-torch": ("safetensors", "torch", [], SAFETENSORS_TO_TORCH),
        "safetensors-tf": ("safetensors", "tf", [], SAFETENSORS_TO_TF),
        "copy-tf": ("tf", "safetensors", ["--layout", "deeplab2"], BLOCKS),
    }
    for name in sources:
        if name != "tf":
            table[f"copy-{name}"] = (name, "safetensors", [], BLOCKS)
    return table


def make_sources(variant: str, folder: Path, home: Path) -> dict[str, Path]:
    """One checkpoint in every format, as ckptkit writes it."""
    prefix = folder / "model.ckpt"
    run([sys.executable, "-c", SYNTHETIC_BUNDLE, variant, str(prefix)], home)
    sources = {"tf": prefix}
    for name, ending in (("torch", ".pth"), ("safetensors", ".safetensors"), ("npz", ".npz")):
        sources[name] = folder / f"source{ending}"
        run([*CKPTKIT, "convert", str(prefix), "--to", name, "-o", str(sources[name])], home)
    return sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="moat3")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="directions whose names contain one of these, by commas")
    parser.add_argument("--no-check", action="store_true", help="do not read results back")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sources", type=Path, help="folder to keep the source files in for the next time")
    arguments = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        home, results = Path(scratch) / "home", Path(scratch) / "results"
        folder = arguments.sources or Path(scratch) / "sources"
        if folder.is_dir():
            stems = {"tf": "model.ckpt"} | {
                name: f"source{ending}"
                for name, ending in (("torch", ".pth"), ("safetensors", ".safetensors"), ("npz", ".npz"))
            }
            sources = {name: folder / stem for name, stem in stems.items()}
        else:
            folder.mkdir(parents=True)
            sources = make_sources(arguments.variant, folder, home)
        endings = {"safetensors": ".safetensors", "torch": ".pth", "tf": ".ckpt"}
        for name, (source, to, options, script) in directions(sources).items():
            if not any(part in name for part in arguments.only.split(",")):
                continue
            ours = str(results / f"ours{endings[to]}")
            convert = [*CKPTKIT, "convert", str(sources[source]), "--to", to, "-o", ours, *options]
            convert += ["--no-check"] if arguments.no_check else []
            data = str(sources[source])
            if script is BLOCKS and source == "tf":
                data += ".data-00000-of-00001"
            peer = [sys.executable, "-c", script, data, str(results / f"peer{endings[to]}")]
            print(f"{name}: {arguments.variant}, {arguments.runs} alternating runs, medians")
            figures = alternate({"ckptkit": convert, "script": peer}, arguments.runs, home, cleaner(results))
            ratio = show(figures)
            report[name] = as_json(figures, ratio)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
