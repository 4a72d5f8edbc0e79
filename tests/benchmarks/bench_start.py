"""How long `ckptkit list` takes to start, against importing the four libraries it stands on.

    python tests/benchmarks/bench_start.py [--runs 25]

Whole processes, run in turn in one session; medians and their ratio. The cache folder is a fresh one, warmed
by one unmeasured run (the compiled registry is kept there).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

IMPORTS = "import typer, rich.table, pydantic, yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=25)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        commands = {
            "ckptkit list": [sys.executable, "-m", "ckptkit.cli.app", "list"],
            "imports": [sys.executable, "-c", IMPORTS],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(arguments.runs + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(
                    command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "CKPTKIT_HOME": home}
                )
                if turn:
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"  {name:14} {median * 1000:6.1f} ms")
    print(f"  ratio: {medians['ckptkit list'] / medians['imports']:.2f}")


if __name__ == "__main__":
    main()
