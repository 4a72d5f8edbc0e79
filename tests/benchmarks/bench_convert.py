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
import sys
import tempfile
from pathlib import Path

from _common import CKPTKIT, SYNTHETIC_BUNDLE, TF_TO_SAFETENSORS, alternate, as_json, cleaner, run, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="moat3")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-check", action="store_true", help="do not read the result back")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        home, results = Path(scratch) / "home", Path(scratch) / "results"
        prefix = Path(scratch) / "sources" / "model.ckpt"
        run([sys.executable, "-c", SYNTHETIC_BUNDLE, arguments.variant, str(prefix)], home)
        size = sum(file.stat().st_size for file in prefix.parent.iterdir()) / 1e6
        convert = [*CKPTKIT, "convert", str(prefix), "--to", "safetensors"]
        convert += ["--output", str(results / "ours.safetensors")]
        convert += ["--no-check"] if arguments.no_check else []
        script = [sys.executable, "-c", TF_TO_SAFETENSORS, str(prefix), str(results / "theirs.safetensors")]
        figures = alternate({"ckptkit": convert, "script": script}, arguments.runs, home, cleaner(results))
    print(f"{arguments.variant}, {size:.0f} MB, {arguments.runs} alternating runs, medians")
    ratio = show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(figures, ratio), indent=2))


if __name__ == "__main__":
    main()
