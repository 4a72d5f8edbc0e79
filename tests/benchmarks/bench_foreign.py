"""Flax and ONNX files to safetensors, against scripts with their own libraries: time ratio and peak memory.

    python tests/benchmarks/bench_foreign.py [--only flax,onnx] [--variant moat3] [--runs 5] [--json FILE]

Both sides are whole processes, run in turn in one session on the same file with the page cache warm:
`ckptkit convert --layout as-is` (result synced, read back and compared), and a script that reads the file
with flax or onnx and calls `safetensors.numpy.save_file`. The files have the shapes of a published model;
flax and onnx themselves write them. Medians and their ratio are printed; peak memory is the child's own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from _common import CKPTKIT, SYNTHETIC_BUNDLE, alternate, as_json, cleaner, run, show

HELD = """
import sys
import numpy as np
from ckptkit.formats.detect import open_reader

with open_reader(sys.argv[1]) as reader:
    held = {name: np.array(reader.read(name)) for name in reader.specs}
"""

WRITE = {
    "flax": f"""{HELD}
from flax import serialization, traverse_util

with open(sys.argv[2], "wb") as file:
    file.write(serialization.msgpack_serialize(traverse_util.unflatten_dict(held, sep="/")))
""",
    "onnx": f"""{HELD}
import onnx
from onnx import helper, numpy_helper

graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(held[name], name) for name in held])
onnx.save(helper.make_model(graph), sys.argv[2])
""",
}

READ = {
    "flax": """
import sys
from flax import serialization, traverse_util
from safetensors.numpy import save_file

with open(sys.argv[1], "rb") as file:
    state = traverse_util.flatten_dict(serialization.msgpack_restore(file.read()), sep="/")
save_file(state, sys.argv[2])
""",
    "onnx": """
import sys
import onnx
from onnx.numpy_helper import to_array
from safetensors.numpy import save_file

graph = onnx.load(sys.argv[1]).graph
save_file({one.name: to_array(one) for one in graph.initializer}, sys.argv[2])
""",
}

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
    parser.add_argument("--only", default="flax,onnx")
    parser.add_argument("--variant", default="moat3")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kept: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        home, results = Path(scratch) / "home", Path(scratch) / "results"
        prefix = Path(scratch) / "sources" / "model.ckpt"
        run([sys.executable, "-c", SYNTHETIC_BUNDLE, arguments.variant, str(prefix)], home)
        for format in arguments.only.split(","):
            source = Path(scratch) / f"model.{format}"
            run([sys.executable, "-c", WRITE[format], str(prefix), str(source)], home)
            ours, theirs = results / "ours.safetensors", results / "theirs.safetensors"
            convert = [*CKPTKIT, "convert", str(source), "--layout", "as-is", "--output", str(ours)]
            script = [sys.executable, "-c", READ[format], str(source), str(theirs)]
            cleaner(results)()
            for command in (convert, script):
                run(command, home)
            run([sys.executable, "-c", SAME, str(ours), str(theirs)], home)
            commands = {"ckptkit": convert, format: script}
            figures = alternate(commands, arguments.runs, home, cleaner(results))
            size = source.stat().st_size / 1e6
            print(
                f"{format} of {arguments.variant}, {size:.0f} MB, {arguments.runs} alternating runs, medians"
            )
            kept[format] = as_json(figures, show(figures))
            source.unlink()
    if arguments.json:
        arguments.json.write_text(json.dumps(kept, indent=2))


if __name__ == "__main__":
    main()
