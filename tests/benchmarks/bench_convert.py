"""A whole conversion against the script one would write without ckptkit: time ratio and peak memory.

    python tests/benchmarks/bench_convert.py [--variant moat3] [--runs 5] [--json FILE]

Both sides are whole processes, run in turn in one session on the same synthetic TensorFlow checkpoint with
the page cache warm: `ckptkit convert` (every crc32c verified, result synced, read back and compared), and a
script that imports tensorflow, reads each tensor, transposes it and calls `safetensors.numpy.save_file`.
Medians and their ratio are printed; peak resident memory is the child's own, from `wait4`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ckptkit.synth import Synthetic, write_bundle

NAIVE = """
import sys
import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

reader = tf.train.load_checkpoint(sys.argv[1])
state = {}
for name, shape in reader.get_variable_to_shape_map().items():
    if name == "global_step":
        continue
    tensor = reader.get_tensor(name)
    if name.endswith("depthwise_kernel"):
        tensor = tensor.transpose(2, 3, 0, 1)
    elif name.endswith("kernel"):
        tensor = tensor.transpose(3, 2, 0, 1)
    elif name.endswith(("q/weight", "k/weight", "v/weight")):
        tensor = tensor.reshape(len(tensor), -1).T
    elif name.endswith("o/weight"):
        tensor = tensor.reshape(-1, tensor.shape[-1]).T
    state[name.replace("/", ".")] = np.ascontiguousarray(tensor)
save_file(state, sys.argv[2])
"""


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of one child."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"{command} failed: run it by hand")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="moat3")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-check", action="store_true", help="do not read the result back")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        prefix = Path(scratch) / "model.ckpt"
        write_bundle(Synthetic(arguments.variant), prefix)
        size = sum(p.stat().st_size for p in Path(scratch).iterdir()) / 1e6
        ours, naive = Path(scratch) / "ours.safetensors", Path(scratch) / "naive.safetensors"
        convert = [sys.executable, "-m", "ckptkit.cli.app", "convert", str(prefix), "--to", "safetensors"]
        convert += ["--output", str(ours), *(["--no-check"] if arguments.no_check else [])]
        commands = {"ckptkit": convert, "naive": [sys.executable, "-c", NAIVE, str(prefix), str(naive)]}
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for command in commands.values():
            run(command)  # once unmeasured: warms the page cache and the interpreter's caches
        for _ in range(arguments.runs):
            for name, command in commands.items():
                ours.unlink(missing_ok=True)  # freeing the last run's result belongs to neither
                naive.unlink(missing_ok=True)
                figures[name].append(run(command))
    report = {
        name: {
            "median_s": round(statistics.median(t for t, _ in runs), 3),
            "all_s": [round(t, 3) for t, _ in runs],
            "peak_rss_mb": round(max(m for _, m in runs), 1),
        }
        for name, runs in figures.items()
    }
    ratio = report["ckptkit"]["median_s"] / report["naive"]["median_s"]
    print(f"{arguments.variant}, {size:.0f} MB, {arguments.runs} alternating runs, medians")
    for name, figure in report.items():
        median, peak = figure["median_s"], figure["peak_rss_mb"]
        print(f"  {name:8} {median:7.2f} s   peak {peak:7.1f} MB   {figure['all_s']}")
    print(f"  ratio ckptkit / naive: {ratio:.3f} (1/{1 / ratio:.1f})")
    if arguments.json:
        arguments.json.write_text(json.dumps({**report, "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
