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
import sys
import tempfile
from pathlib import Path

from _common import CKPTKIT, alternate, as_json, cleaner, run, show

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--id", default="moganet-xt-224")
    parser.add_argument("--file", type=Path, help="a .pth of one's own instead of a synthetic one")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--no-check", action="store_true", help="do not read the result back")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        home, results = Path(scratch) / "home", Path(scratch) / "results"
        source = arguments.file or Path(scratch) / "source.pth"
        if arguments.file is None:
            run([*CKPTKIT, "synth", arguments.id, "-o", str(source)], home)
        ours, theirs = Path(scratch) / "ours.safetensors", Path(scratch) / "theirs.safetensors"

        def commands(ours: Path, theirs: Path) -> dict[str, list[str]]:
            convert = [*CKPTKIT, "convert", str(source), "--to", "safetensors", "--output", str(ours)]
            convert += ["--no-check"] if arguments.no_check else []
            return {"ckptkit": convert, "script": [sys.executable, "-c", SCRIPT, str(source), str(theirs)]}

        for command in commands(ours, theirs).values():
            run(command, home)
        run([sys.executable, "-c", SAME, str(ours), str(theirs)], home)
        measured = commands(results / ours.name, results / theirs.name)
        figures = alternate(measured, arguments.runs, home, cleaner(results))
        size = source.stat().st_size / 1e6
    print(f"{arguments.file or arguments.id}, {size:.0f} MB, {arguments.runs} alternating runs, medians")
    ratio = show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(figures, ratio), indent=2))


if __name__ == "__main__":
    main()
