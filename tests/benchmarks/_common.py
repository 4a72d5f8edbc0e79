"""What the benchmarks share: running whole commands in turn, medians, and the naive scripts' common parts."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CKPTKIT = [sys.executable, "-m", "ckptkit.cli.app", "--quiet"]

SYNTHETIC_BUNDLE = """
import sys
from pathlib import Path
from ckptkit.models.synth import Synthetic, write_bundle

write_bundle(Synthetic(sys.argv[1]), Path(sys.argv[2]))
"""
"""Run as a child: a process starts with the peak memory of the one that started it; this one stays small."""

READ_WITH_TENSORFLOW = """
import sys
import numpy as np
import tensorflow as tf

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
"""

TF_TO_SAFETENSORS = f"""{READ_WITH_TENSORFLOW}
from safetensors.numpy import save_file

save_file(state, sys.argv[2])
"""


@dataclass
class Runs:
    """Wall seconds and peak resident megabytes of every run of one command."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        return max(self.megabytes)

    def as_json(self) -> dict[str, object]:
        return {
            "median_s": round(self.median, 3),
            "all_s": [round(second, 3) for second in self.seconds],
            "peak_rss_mb": round(self.peak, 1),
        }


def run(command: Sequence[str], home: Path) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of one child, its own usage as `wait4` tells it."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CKPTKIT_HOME": str(home)}
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"{list(command)} failed: run it by hand")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def alternate(
    commands: Mapping[str, Sequence[str]], turns: int, home: Path, clean: Callable[[], None]
) -> dict[str, Runs]:
    """Run every command once unmeasured (page cache, interpreter caches), then all of them in turn."""
    figures = {name: Runs() for name in commands}
    for turn in range(turns + 1):
        for name, command in commands.items():
            clean()  # freeing the last run's result belongs to nobody
            os.sync()  # nor does writing it back
            seconds, megabytes = run(command, home)
            if turn:
                figures[name].seconds.append(seconds)
                figures[name].megabytes.append(megabytes)
    return figures


def show(figures: Mapping[str, Runs]) -> float:
    """Print the runs of ckptkit and of its peer, and the ratio of their medians; returns it."""
    for name, runs in figures.items():
        every = [round(second, 3) for second in runs.seconds]
        print(f"  {name:8} {runs.median:7.3f} s   peak {runs.peak:7.1f} MB   {every}")
    ours, theirs = figures.values()
    ratio = ours.median / theirs.median
    print(f"  ratio {ratio:.3f} (1/{1 / ratio:.1f})", flush=True)
    return ratio


def as_json(figures: Mapping[str, Runs], ratio: float) -> dict[str, object]:
    """What to keep of a comparison."""
    return {**{name: runs.as_json() for name, runs in figures.items()}, "ratio": round(ratio, 4)}


def cleaner(folder: Path) -> Callable[[], None]:
    """Empties the folder of results."""

    def clean() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    return clean
