"""Formats that are read and not written, as users meet them: every command that takes a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import Runner, runner
from tests.support.foreign_files import gguf_file, msgpack, onnx_graph, onnx_model, onnx_tensor
from tests.support.tf_protos import const, graph, tensor, v1_entries, v1_file

SOURCE = np.random.default_rng(7)
KERNEL, BIAS = SOURCE.standard_normal((3, 4)).astype("float32"), SOURCE.standard_normal(4).astype("float32")
HELD = {"net/a/kernel": KERNEL, "net/a/bias": BIAS}
FILES = {
    "flax": ("m.msgpack", msgpack({"net": {"a": {"kernel": KERNEL, "bias": BIAS}}, "step": 3})),
    "onnx": ("m.onnx", onnx_model(onnx_graph([onnx_tensor(*item) for item in HELD.items()]))),
    "tf1": ("m.v1", v1_file(v1_entries(HELD))),
    "graphdef": ("m.pb", graph(*(const(name, tensor(array)) for name, array in HELD.items()))),
    "gguf": ("m.gguf", gguf_file({n: (0, array.shape, array.tobytes()) for n, array in HELD.items()})),
}

pytestmark = pytest.mark.parametrize("format", FILES)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Ckptkit, in a folder with one file of each format and a model of other names."""
    for name, raw in FILES.values():
        (tmp_path / name).write_bytes(raw)
    np.savez(tmp_path / "target.npz", **{"a.weight": KERNEL.T, "a.bias": BIAS})
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


def test_inspect_and_verify(run: Runner, format: str) -> None:
    name = FILES[format][0]
    found = json.loads(run("inspect", name, "--json").out)
    assert found["format"] == format
    assert [tensor["name"] for tensor in found["tensors"]] == list(HELD)
    done = run("verify", name, "--deep")
    assert done.code == 0
    assert f"{format}, 2 tensors" in done.out


def test_convert_and_diff(run: Runner, format: str) -> None:
    name = FILES[format][0]
    for target in ("out.safetensors", "out.npz", "out.pth", "out.ckpt"):
        assert run("convert", name, "--layout", "as-is", "-o", target).code == 0
        assert run("diff", name, target).code == 0
    np.testing.assert_array_equal(np.load("out.npz")["net/a/kernel"], KERNEL)


def test_rules_are_drafted_and_used(run: Runner, format: str) -> None:
    name = FILES[format][0]
    assert run("rules", "suggest", name, "target.npz", "-o", "rules.yaml").code == 0
    assert run("convert", name, "--rules", "rules.yaml", "--require", "proven", "-o", "out.npz").code == 0
    assert run("diff", "target.npz", "out.npz").code == 0


def test_none_is_written(run: Runner, format: str) -> None:
    done = run("convert", "target.npz", "--layout", "as-is", "-o", FILES[format][0], "--force")
    assert done.code == 2
    done = run("convert", "target.npz", "--layout", "as-is", "--to", format, "-o", "x")
    assert done.code == 2
    expected = "export" if format == "onnx" else f"{format} files are read, not written"
    assert expected in done.err
