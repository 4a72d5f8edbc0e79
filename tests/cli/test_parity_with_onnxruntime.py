"""``ckptkit parity --with onnxruntime``, as users call it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ckptkit.cli.app import main
from tests.cli.test_parity_commands import HIDE
from tests.support.commands import pip_install
from tests.support.parity_cases import models_here
from tests.support.running import finish, start
from tests.support.toys import MOAT, SIDE, STAGES, toy_variants

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript")
ABSENT = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda _, name, path=None, target=None: None if name in {names!r} else find(name, path, target)
)
"""
"""Makes packages look as if they were not installed; PyTorch's exporter asks for TensorFlow by itself."""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run the command in this process, which knows the toys; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def parity(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["parity", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    with toy_variants(), models_here():
        yield parity


def need(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package)


@pytest.mark.slow
def test_one_report_for_each_backend(run: Run):
    need(*PACKAGES, "tensorflow")
    code, out, err = run(MOAT, "--synthetic", "--with", "onnxruntime", "--with", "keras", "--junit", "p.xml")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"{MOAT} with onnxruntime: {MOAT} with position embedding"
    assert "PyTorch   reads the original (tf, layout deeplab2, float32); torch" in lines[3]
    assert "ONNX      reads a fresh export (onnx, layout opset 18, float32); onnxruntime" in lines[4]
    assert [line.split()[0] for line in lines[6:12]] == [*STAGES[MOAT], "logits"]
    second = lines.index(f"{MOAT}: {MOAT} with position embedding")
    assert "Keras     reads the original" in lines[second + 3]
    verdicts = [line for line in lines if line.startswith("agree: ")]
    assert [line.split(" (")[0] for line in verdicts] == [f"agree: {MOAT} with onnxruntime", f"agree: {MOAT}"]
    assert "exporting to onnx" in err
    assert not [line for line in err.splitlines() if not line.startswith(f"{MOAT}: ")], "nobody else talks"
    suites = ElementTree.parse("p.xml").getroot()
    assert [suite.get("name") for suite in suites] == [f"parity {MOAT} with onnxruntime", f"parity {MOAT}"]


@pytest.mark.slow
def test_a_graph_about_to_be_published_is_proven_by_its_name_alone(run: Run, tmp_path: Path):
    need(*PACKAGES)
    import onnx

    from ckptkit.models.graphs.onnx_graph import write_onnx
    from tests.support.toys import toy_file, toy_model

    source = toy_file(tmp_path, MOAT)
    write_onnx(toy_model(tmp_path, MOAT), tmp_path / "m.onnx", size=(SIDE, SIDE))
    code, out, err = run(source, "--converted", "m.onnx", "--json")
    assert code == 0, err
    (report,) = json.loads(out)
    assert (report["with"], report["ok"], report["sides"]["onnxruntime"]["reads"]) == (
        "onnxruntime",
        True,
        "m.onnx",
    )
    model = onnx.load("m.onnx")
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "head.bias"))
    onnx.save(model, "m.onnx")
    code, out, _ = run(source, "--converted", "m.onnx")
    assert code == 1
    assert out.splitlines()[0].startswith("DISAGREE on the logits: ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--synthetic", "--with", "jax"], 2, "unknown backend 'jax'; choose from keras, onnxruntime"),
        (["--synthetic", "--with", "onnxruntime", "--dtype", "float16"], 2, "leave --dtype out"),
        (["--converted", "m.onnx", "--with", "keras"], 2, "leave --with out"),
        (["--converted", "m.pth", "--with", "onnxruntime"], 2, "leave --with out"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(arguments: list[str], code: int, says: str, run: Run):
    found, out, err = run(MOAT, *arguments)
    assert (found, out) == (code, "")
    assert says in err


@pytest.mark.parametrize(
    ("hidden", "line"),
    [
        (
            ("onnxruntime", "onnxscript"),
            f"needs onnxruntime and onnxscript; {pip_install('onnxruntime', 'onnxscript')}",
        ),
        (("torch", "onnx"), f"needs torch and onnx; {pip_install('torch', 'onnx')}"),
    ],
)
@pytest.mark.parametrize("command", ["parity", "export"])
def test_what_is_missing_returns_6_before_any_work(
    command: str, hidden: tuple[str, ...], line: str, tmp_path: Path
):
    need(*set(PACKAGES) - set(hidden))
    arguments = {
        "parity": ["parity", "tiny-moat0", "--synthetic", "--with", "onnxruntime"],
        "export": ["export", "tiny-moat0", "--synthetic", "--to", "onnx", "-o", tmp_path / "m.onnx"],
    }
    process = start(arguments[command], tmp_path / "home", HIDE.format(names=hidden))
    code, out, err = finish(process)
    assert code == 6, err
    assert line in err
    assert len(err.splitlines()) == 1
    assert out == ""


@pytest.mark.slow
def test_tensorflow_takes_no_part(tmp_path: Path):
    """Nor need it be installed."""
    need(*PACKAGES)
    process = start(
        ["parity", "tiny-moat0", "--synthetic", "--with", "onnxruntime", "--resolution", "64", "--quiet"],
        tmp_path / "home",
        ABSENT.format(names=("tensorflow", "keras")),
    )
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "agree: tiny-moat0 with onnxruntime" in out
