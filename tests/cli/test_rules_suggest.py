"""The command `rules suggest`: exit status, file, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import Runner, runner
from tests.support.ported import PORTS


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.chdir(tmp_path)
    for name in ("mixer", "bert_fused"):
        port = PORTS[name]()
        np.savez(f"{name}.npz", **port.source)
        np.savez(f"{name}-target.npz", **port.target)
    return runner(capsys)


def test_what_is_whole_exits_with_0_and_is_written(run: Runner) -> None:
    found = run("rules", "suggest", "mixer.npz", "mixer-target.npz", "-o", "rules.yaml")
    assert found.code == 0
    assert found.out.startswith("12 rules for 150 tensors: 150 proven\n")
    assert "wrote rules.yaml" in found.err
    assert run("rules", "check", "rules.yaml", "mixer.npz", "mixer-target.npz").code == 0
    assert (
        run("convert", "mixer.npz", "--rules", "rules.yaml", "--require", "proven", "-o", "made.npz").code
        == 0
    )
    assert run("diff", "made.npz", "mixer-target.npz").code == 0


def test_a_question_exits_with_1_and_is_in_the_file(run: Runner) -> None:
    found = run("rules", "suggest", "bert_fused.npz", "bert_fused-target.npz", "--names-only")
    assert found.code == 1
    assert found.out.startswith("# From bert_fused.npz to bert_fused-target.npz, drafted by ckptkit")
    assert "# question: which of these is which?" in found.out
    assert "48 ambiguous" in found.err


def test_json_has_everything(run: Runner) -> None:
    found = run("rules", "suggest", "bert_fused.npz", "bert_fused-target.npz", "--names-only", "--json")
    value = json.loads(found.out)
    assert found.code == 1
    assert (value["ok"], value["by"], value["tensors"]["ambiguous"]) == (False, "names and shapes", 48)
    assert value["questions"][0]["question"] == "which of these is which?"
    assert {rule["sure"] for rule in value["rules"]} == {"forced", "guessed", "ambiguous"}
    assert value["text"].startswith("# From ")
    assert value["path"] is None


def test_an_output_that_exists_is_refused_before_the_work(run: Runner) -> None:
    Path("rules.yaml").write_text("mine")
    found = run("rules", "suggest", "mixer.npz", "no-such-module:build", "-o", "rules.yaml")
    assert (found.code, Path("rules.yaml").read_text()) == (2, "mine")
    assert "rules.yaml exists already" in found.err
    assert run("rules", "suggest", "mixer.npz", "mixer-target.npz", "-o", "rules.yaml", "--force").code == 0
    assert Path("rules.yaml").read_text().startswith("# From mixer.npz")


def test_nothing_is_written_where_nothing_is_found(run: Runner) -> None:
    np.savez("other.npz", x=np.zeros((3, 5, 7), np.float32))
    found = run("rules", "suggest", "mixer.npz", "other.npz", "-o", "rules.yaml")
    assert found.code == 5
    assert "have no layers in common, by values, names or shapes. Run: ckptkit inspect mixer.npz" in found.err
    assert not Path("rules.yaml").exists()


def test_a_function_of_ones_own_is_a_target(run: Runner) -> None:
    Path("their_mixer.py").write_text(
        "import json\n"
        "class Shape:\n"
        "    def __init__(self, shape):\n"
        "        self.shape = shape\n"
        f"SHAPES = {json.dumps({n: list(a.shape) for n, a in PORTS['mixer']().target.items()})}\n"
        "def build():\n"
        "    return {name: Shape(shape) for name, shape in SHAPES.items()}\n"
    )
    found = run("rules", "suggest", "mixer.npz", "their_mixer:build", "-o", "rules.yaml")
    assert found.code == 0
    assert "proven" not in found.out
    missing = run("rules", "suggest", "mixer.npz", "no_such_module:build")
    assert missing.code == 2
    assert "no module 'no_such_module' here or among the installed packages" in missing.err


def test_tensors_of_the_same_name_and_shape_are_the_same(tmp_path: Path, capsys) -> None:
    """Nothing else about them tells: four square kernels, in another order on the other side."""
    shapes = {f"{name}.weight": [8, 8] for name in ("x", "a", "y\x9b", "b")}
    (tmp_path / "a.json").write_text(json.dumps(shapes))
    (tmp_path / "b.json").write_text(json.dumps(dict(reversed(shapes.items()))))
    done = runner(capsys)("rules", "suggest", tmp_path / "a.json", tmp_path / "b.json", "--json")
    assert done.code == 0, done.out
    found = json.loads(done.out)
    assert found["tensors"] == {"proven": 0, "forced": 0, "guessed": 4, "ambiguous": 0}
    assert all(rule["source"] == rule["target"] and "axes" not in rule for rule in found["rules"])
