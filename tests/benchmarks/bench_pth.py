"""A published PyTorch file to safetensors against the script one would write with torch: time ratio, memory.

    python tests/benchmarks/bench_pth.py [--id moganet-xt-224] [--file FILE] [--runs 9] [--json FILE]

Both sides are whole processes, run in turn in one session on the same file with the page cache warm:
`ckptkit convert` (result synced, read back and compared), and a script that imports torch, calls `torch.load`
and `safetensors.torch.save_file`. The file is what `ckptkit synth` writes for the id, unless one is given.
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

SCRIPT = """
import sys
import torch
from safetensors.torch import save_file

checkpoint = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
state = checkpoint.get("state_dict_ema", checkpoint.get("state_dict", checkpoint))
names = {name: name.removeprefix("backbone.").replace("head.fc.", "head.") for name in state}
save_file({names[name]: tensor.contiguous() for name, tensor in state.items()}, sys.argv[2])
"""

SAME = """
import sys
from ckptkit.formats.detect import open_reader

with open_reader(sys.argv[1]) as ours, open_reader(sys.argv[2]) as theirs:
    assert dict(ours.specs) == dict(theirs.specs)
    assert all(ours.read(name).tobytes() == theirs.read(name).tobytes() for name in ours.specs)
"""
"""Only results of the same names, shapes and bytes make the comparison a fair one."""

CKPTKIT = [sys.executable, "-m", "ckptkit.cli.app", "--quiet"]


def run(command: list[str], home: Path) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of one child.

    The system counts what the parent held when the child began, so this process imports nothing large.
    """
    environment = {**os.environ, "CKPTKIT_HOME": str(home)}
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"{command} failed: run it by hand")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--id", default="moganet-xt-224")
    parser.add_argument("--file", type=Path, help="a .pth of one's own instead of a synthetic one")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--no-check", action="store_true", help="do not read the result back")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        home = Path(scratch) / "home"
        source = arguments.file or Path(scratch) / "source.pth"
        if arguments.file is None:
            run([*CKPTKIT, "synth", arguments.id, "-o", str(source)], home)
        ours, theirs = Path(scratch) / "ours.safetensors", Path(scratch) / "theirs.safetensors"
        convert = [*CKPTKIT, "convert", str(source), "--to", "safetensors", "--output", str(ours)]
        convert += ["--no-check"] if arguments.no_check else []
        commands = {"ckptkit": convert, "script": [sys.executable, "-c", SCRIPT, str(source), str(theirs)]}
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for command in commands.values():
            run(command, home)  # once unmeasured: warms the page cache and the interpreter's caches
        run([sys.executable, "-c", SAME, str(ours), str(theirs)], home)
        for _ in range(arguments.runs):
            for name, command in commands.items():
                ours.unlink(missing_ok=True)  # freeing the last run's result belongs to neither
                theirs.unlink(missing_ok=True)
                figures[name].append(run(command, home))
        size = source.stat().st_size / 1e6
    report = {
        name: {
            "median_s": round(statistics.median(t for t, _ in runs), 3),
            "all_s": [round(t, 3) for t, _ in runs],
            "peak_rss_mb": round(max(m for _, m in runs), 1),
        }
        for name, runs in figures.items()
    }
    ratio = report["ckptkit"]["median_s"] / report["script"]["median_s"]
    print(f"{arguments.file or arguments.id}, {size:.0f} MB, {arguments.runs} alternating runs, medians")
    for name, figure in report.items():
        median, peak = figure["median_s"], figure["peak_rss_mb"]
        print(f"  {name:8} {median:7.3f} s   peak {peak:7.1f} MB   {figure['all_s']}")
    print(f"  ratio ckptkit / script: {ratio:.3f} (1/{1 / ratio:.1f})")
    if arguments.json:
        arguments.json.write_text(json.dumps({**report, "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
