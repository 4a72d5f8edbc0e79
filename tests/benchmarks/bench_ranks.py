"""Checkpoints of two ranks to safetensors against the libraries' own way: time ratio, memory.

    python tests/benchmarks/bench_ranks.py [--of dcp|zero3] [--blocks 15] [--runs 3] [--json FILE]

DCP: two processes save DTensors cut along their first axis; the peer is `dcp_to_torch_save`, `torch.load`
and `safetensors.torch.save_file` in one process. ZeRO-3: files as DeepSpeed saves them, without the moments
of the optimizer; the peer is its own `zero_to_fp32`, where deepspeed is installed. 15 blocks are 189M
parameters.
Both sides are whole processes, run in turn in one session with the page cache warm; the results are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from _common import CKPTKIT, alternate, as_json, cleaner, run, show

SHAPES = """
def shapes(blocks):
    for block in range(blocks):
        for name, shape in {"up": (4096, 1024), "down": (1024, 4096), **{k: (1024, 1024) for k in "qkvo"},
                            "norm.weight": (1024,), "norm.bias": (1024,)}.items():
            yield f"blocks.{block}.{name}", shape
"""

SAVE_DCP = f"""
import sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
{SHAPES}
rank, store, folder, blocks = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{{store}}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(rank)
state = {{name: DTensor.from_local(torch.randn(shape[0] // 2, *shape[1:]), mesh, [Shard(0)])
         for name, shape in shapes(blocks)}}
checkpoint.save({{"model": state}}, checkpoint_id=folder)
dist.barrier()
dist.destroy_process_group()
"""

SAVE_ZERO3 = f"""
import os, sys
import torch
{SHAPES}
folder, blocks = sys.argv[1], int(sys.argv[2])
step = os.path.join(folder, "global_step1")
os.makedirs(step)
every = dict(shapes(blocks))
total = sum(torch.Size(shape).numel() for shape in every.values())
for rank in range(2):
    torch.manual_seed(rank)
    state = {{"zero_stage": 3, "partition_count": 2, "fp32_flat_groups": [torch.randn(total // 2)]}}
    name = f"zero_pp_rank_{{rank}}_mp_rank_00_"
    torch.save({{"optimizer_state_dict": state}}, os.path.join(step, name + "optim_states.pt"))
    sizes = [{{name: torch.Size(shape) for name, shape in every.items()}}]
    model = {{"module": {{}}, "buffer_names": [], "param_shapes": sizes, "shared_params": {{}}}}
    torch.save(model, os.path.join(step, name + "model_states.pt"))
open(os.path.join(folder, "latest"), "w").write("global_step1")
"""

DCP_SCRIPT = """
import os, sys
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

dcp_to_torch_save(sys.argv[1], sys.argv[2] + ".pth")
save_file(torch.load(sys.argv[2] + ".pth", mmap=True)["model"], sys.argv[2])
os.unlink(sys.argv[2] + ".pth")
"""

ZERO3_SCRIPT = """
import sys
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import save_file

save_file(get_fp32_state_dict_from_zero_checkpoint(sys.argv[1]), sys.argv[2])
"""

SAME = """
import sys
from ckptkit.formats.detect import open_reader

with open_reader(sys.argv[1]) as ours, open_reader(sys.argv[2]) as theirs:
    assert dict(ours.specs) == dict(theirs.specs)
    assert all(ours.read(name).tobytes() == theirs.read(name).tobytes() for name in ours.specs)
"""


def make(kind: str, folder: Path, blocks: int, home: Path) -> None:
    """Save the checkpoint, in processes of their own: this one stays small."""
    if kind == "zero3":
        run([sys.executable, "-c", SAVE_ZERO3, str(folder), str(blocks)], home)
        return
    words = [str(folder.with_suffix(".store")), str(folder), str(blocks)]
    ranks = [subprocess.Popen([sys.executable, "-c", SAVE_DCP, str(rank), *words]) for rank in range(2)]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit("saving failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", choices=["dcp", "zero3"], default="dcp")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    script = DCP_SCRIPT if arguments.of == "dcp" else ZERO3_SCRIPT
    alone = arguments.of == "zero3" and find_spec("deepspeed") is None
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        home, results, source = (Path(scratch) / name for name in ("home", "results", "source"))
        make(arguments.of, source, arguments.blocks, home)

        def commands(folder: Path) -> dict[str, list[str]]:
            ours, theirs = (str(folder / f"{name}.safetensors") for name in ("ours", "theirs"))
            convert = [*CKPTKIT, "convert", str(source), "--layout", "as-is", "-o", ours]
            peer = {} if alone else {"script": [sys.executable, "-c", script, str(source), theirs]}
            return {"ckptkit": convert, **peer}

        results.mkdir()
        for command in commands(results).values():
            run(command, home)
        if not alone:
            names = [str(results / f"{name}.safetensors") for name in ("ours", "theirs")]
            run([sys.executable, "-c", SAME, *names], home)
        figures = alternate(commands(results), arguments.runs, home, cleaner(results))
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 1e6
    print(f"{arguments.of}, {size:.0f} MB, {arguments.runs} alternating runs, medians")
    if alone:
        print(f"  ckptkit {figures['ckptkit'].median:.3f} s   peak {figures['ckptkit'].peak:.1f} MB")
        return
    ratio = show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(figures, ratio), indent=2))


if __name__ == "__main__":
    main()
