"""Rules that join and cut tensors against numpy doing the same: time ratio and peak memory.

    python tests/benchmarks/bench_rules.py [--runs 5] [--only PART] [--json FILE]

Both sides are whole processes, run in turn in one session on the same safetensors file with the page cache
warm. ckptkit checks the source's sha256 for its provenance, syncs the result, reads it back and compares;
the scripts read with safetensors.numpy, make the same tensors by numpy, and write them by `save_file`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from _common import CKPTKIT, alternate, as_json, cleaner, run, show

LAYERS, WIDTH = 16, 1024

CASES: dict[str, tuple[list[str], str]] = {
    "concat, turned": (
        [
            '{source: ["l{i}/q", "l{i}/k", "l{i}/v"], target: "l.{i}.qkv", op: concat, axes: "i o -> o i"}',
        ],
        "for i in range(N): made[f'l.{i}.qkv'] = "
        "np.ascontiguousarray(np.concatenate([held[f'l{i}/{p}'].T for p in 'qkv']))",
    ),
    "concat": (
        ['{source: ["l{i}/q", "l{i}/k", "l{i}/v"], target: "l.{i}.qkv", op: concat}'],
        "for i in range(N): made[f'l.{i}.qkv'] = np.concatenate([held[f'l{i}/{p}'] for p in 'qkv'])",
    ),
    "stack": (
        [f'{{source: "l{{i}}/{p}", target: "{p}", op: stack, over: i}}' for p in "qkv"],
        "for p in 'qkv': made[p] = np.stack([held[f'l{i}/{p}'] for i in range(N)])",
    ),
    "split, turned": (
        ['{source: "f{i}", target: ["q.{i}", "k.{i}", "v.{i}"], op: split, axes: "o i -> i o"}'],
        "for i in range(N):\n"
        "    for p, part in zip('qkv', np.split(held[f'f{i}'], 3)):\n"
        "        made[f'{p}.{i}'] = np.ascontiguousarray(part.T)",
    ),
    "split, interleaved": (
        [
            '{source: "f{i}", target: ["q.{i}", "k.{i}", "v.{i}"], op: split, over: three, '
            'axes: "(h three d) i -> (h d) i", sizes: {h: 16}}'
        ],
        "for i in range(N):\n"
        "    apart = held[f'f{i}'].reshape(16, 3, -1, W)\n"
        "    for n, p in enumerate('qkv'):\n"
        "        made[f'{p}.{i}'] = np.ascontiguousarray(apart[:, n]).reshape(-1, W)",
    ),
}

MAKE = f"""
import sys
import numpy as np
from safetensors.numpy import save_file

random = np.random.default_rng(0)
parts = {{f"l{{i}}/{{p}}": random.standard_normal(({WIDTH}, {WIDTH}), dtype=np.float32)
         for i in range({LAYERS}) for p in "qkv"}}
fused = {{f"f{{i}}": random.standard_normal((3 * {WIDTH}, {WIDTH}), dtype=np.float32)
         for i in range({LAYERS})}}
save_file(parts, sys.argv[1])
save_file(fused, sys.argv[2])
"""

SCRIPT = f"""
import sys
import numpy as np
from safetensors.numpy import load_file, save_file

N, W = {LAYERS}, {WIDTH}
held, made = load_file(sys.argv[1]), {{}}
%s
save_file(made, sys.argv[2])
"""

SAME = """
import sys
import numpy as np
from safetensors.numpy import load_file

one, other = load_file(sys.argv[1]), load_file(sys.argv[2])
assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose names contain one of these, by commas")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        home, results, rules = (Path(scratch) / name for name in ("home", "results", "rules.yaml"))
        parts, fused = Path(scratch) / "parts.safetensors", Path(scratch) / "fused.safetensors"
        run([sys.executable, "-c", MAKE, str(parts), str(fused)], home)
        for name, (rows, script) in CASES.items():
            if not any(part in name for part in arguments.only.split(",")):
                continue
            source = str(fused if name.startswith("split") else parts)
            ours, peers = (str(results / f"{who}.safetensors") for who in ("ours", "peers"))
            rules.write_text("version: 2\nrules:\n" + "".join(f"  - {row}\n" for row in rows))
            convert = [*CKPTKIT, "convert", source, "-o", ours, "--rules", str(rules)]
            peer = [sys.executable, "-c", SCRIPT % script, source, peers]
            print(
                f"{name}: {LAYERS} × 3 × {WIDTH}×{WIDTH} float32, {arguments.runs} alternating runs, medians"
            )
            results.mkdir(exist_ok=True)
            run(convert, home)
            run(peer, home)
            run([sys.executable, "-c", SAME, ours, peers], home)
            figures = alternate({"ckptkit": convert, "numpy": peer}, arguments.runs, home, cleaner(results))
            report[name] = as_json(figures, show(figures))
            for old in results.iterdir():
                old.unlink()
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
