"""``rules check`` and ``diff --rules``: what fits a file of rules, and what differs across names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.commands import runner

RULES = """\
version: 2
rules:
  - {source: "block_{i}/kernel", target: "blocks.{i}.weight", axes: "i o -> o i", sure: proven}
  - {source: ["q", "k"], target: "qk", op: concat, sure: guessed}
  - {target: "steps", fill: zeros, shape: [], dtype: int64}
ignore:
  - {name: step counter, pattern: "global_step", reason: "counts training steps"}
"""
SOURCE = {
    "block_0/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "block_1/kernel": np.ones((2, 2), np.float32),
    "q": np.float32([1, 2]),
    "k": np.float32([3, 4]),
    "global_step": np.array(7),
}
TARGET = {
    "blocks.0.weight": np.ascontiguousarray(SOURCE["block_0/kernel"].T),
    "blocks.1.weight": np.ones((2, 2), np.float32),
    "qk": np.float32([1, 2, 3, 4]),
    "steps": np.array(0),
}


@pytest.fixture
def run(capsys):
    return runner(capsys)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rules.yaml").write_text(RULES)
    save_file(SOURCE, "a.safetensors")
    save_file(TARGET, "b.safetensors")
    return tmp_path


class TestCheck:
    def test_what_fits(self, run):
        done = run("rules", "check", "rules.yaml", "a.safetensors", "b.safetensors")
        assert done.code == 0
        assert done.out.splitlines()[0] == "fits: 5 tensors → 4 tensors; 1 left out; 1 filled in"
        assert "1 proven, 1 guessed, 1 written by hand" in done.out
        assert run("rules", "check", "rules.yaml", "b.safetensors", "a.safetensors", "--reverse").code == 1

    def test_a_target_of_names_and_shapes(self, run, here):
        shapes = {name: list(array.shape) for name, array in TARGET.items()}
        Path("plain.json").write_text(json.dumps(shapes))
        Path("full.json").write_text(run("inspect", "b.safetensors", "--json").out)
        for target in ("plain.json", "full.json"):
            done = run("rules", "check", "rules.yaml", "a.safetensors", target, "--json")
            assert done.code == 0 and json.loads(done.out)["ok"] is True
        del shapes["qk"]
        shapes |= {"blocks.1.weight": [4, 4], "fc.bias": [3]}
        Path("other.json").write_text(json.dumps(shapes))
        done = run("rules", "check", "rules.yaml", "a.safetensors", "other.json", "--json")
        found = json.loads(done.out)
        assert done.code == 1 and found["ok"] is False and found["faults"] == []
        assert found["missing"] == [{"name": "fc.bias", "shape": [3], "dtype": "float32"}]
        assert [one["name"] for one in found["unexpected"]] == ["qk"]
        assert found["other_shape"] == [{"name": "blocks.1.weight", "made": [2, 2], "wanted": [4, 4]}]
        assert "1 missing; 1 unexpected; 1 of another shape" in found["verdict"]

    def test_every_fault_with_the_line_of_its_rule(self, run):
        save_file(
            {"block_0/kernel": np.ones(3, np.float32), "q": np.ones(2), "odd": np.ones(1)}, "c.safetensors"
        )
        done = run("rules", "check", "rules.yaml", "c.safetensors", "--json")
        assert done.code == 1
        faults = {fault["line"]: fault["what"] for fault in json.loads(done.out)["faults"]}
        assert "2 axes expected, shape [3] has 1" in faults[3]
        assert "'k' missing beside 'q'" in faults[4]
        assert faults[None] == "1 tensor fits no rule: odd"
        assert run("rules", "check", "rules.yaml", "c.safetensors").out.startswith("does not fit: 3 faults")

    def test_ambiguous_rules_do_not_fit(self, run):
        Path("rules.yaml").write_text(RULES.replace("guessed", "ambiguous"))
        done = run("rules", "check", "rules.yaml", "a.safetensors", "--json")
        assert done.code == 1
        (fault,) = json.loads(done.out)["faults"]
        assert fault == {"what": "the rule for 'q' is ambiguous", "line": 4}

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", "not JSON of names and shapes"),
            ('{"a": 3}', "the shape of 'a' is not a list of lengths"),
            ('{"a": [-1]}', "the shape of 'a' is not a list of lengths"),
            ('{"a": {"dtype": "int8"}}', "the shape of 'a' is not a list of lengths"),
            ('{"tensors": [{"shape": []}]}', "a tensor without a name"),
            (
                '{"tensors": [{"name": "a", "shape": []}, {"name": "a", "shape": []}]}',
                "two tensors of one name",
            ),
            ("[" * 100_000, "not JSON of names and shapes"),
        ],
    )
    def test_json_that_is_no_outline(self, run, text, told):
        Path("bad.json").write_text(text)
        done = run("rules", "check", "rules.yaml", "a.safetensors", "bad.json")
        assert done.code == 5 and "bad.json" in done.err and told in done.err


class TestDiff:
    def test_across_names(self, run):
        done = run("diff", "a.safetensors", "b.safetensors", "--rules", "rules.yaml")
        assert done.code == 0, done.err
        assert done.out.startswith("same: 4 tensors, bit for bit; left out by rule: 1 in A")
        assert "4 tensors by the rules" in done.out
        assert run("diff", "a.safetensors", "b.safetensors").code == 1

    def test_the_way_back(self, run):
        done = run("diff", "b.safetensors", "a.safetensors", "--rules", "rules.yaml", "--reverse", "--json")
        found = json.loads(done.out)
        assert (found["counts"]["paired"], found["counts"]["identical"]) == (4, 4)
        assert [one["name"] for one in found["only_in_b"]] == ["global_step"]
        assert done.code == 1

    def test_one_element_of_a_part(self, run):
        changed = load_file("b.safetensors")
        changed["qk"] = np.float32([1, 2, 3, 4.5])
        save_file(changed, "c.safetensors")
        done = run("diff", "a.safetensors", "c.safetensors", "--rules", "rules.yaml", "--json")
        (found,) = json.loads(done.out)["changed"]
        assert done.code == 1
        assert (found["name"], found["name_a"], found["name_b"]) == ("qk", "q, k", "qk")
        assert found["values"]["max_abs"] == 0.5 and found["values"]["differing"] == 1
        done = run("diff", "a.safetensors", "c.safetensors", "--rules", "rules.yaml", "--tolerance", "0.5")
        assert done.code == 0

    def test_rules_that_do_not_fit(self, run):
        done = run("diff", "b.safetensors", "a.safetensors", "--rules", "rules.yaml")
        assert done.code == 5 and "does not fit rules.yaml" in done.err


class TestConvert:
    def test_what_was_filled_and_what_a_plan_joins(self, run):
        done = run("convert", "a.safetensors", "-o", "c.npz", "--rules", "rules.yaml", "--json")
        found = json.loads(done.out)
        found = found[0] if isinstance(found, list) else found
        assert found["filled"] == {"steps": "zeros"} and found["tensors"] == 4
        assert any("1 rule is guessed" in note for note in found["notes"])
        done = run("convert", "a.safetensors", "-o", "d.npz", "--rules", "rules.yaml", "--dry-run", "--json")
        found = json.loads(done.out)
        found = found[0] if isinstance(found, list) else found
        moves = {move["target"]: move for move in found["moves"]}
        assert moves["qk"]["sources"] == ["q", "k"] and moves["qk"]["source"] is None
        assert moves["steps"]["sources"] == [] and moves["steps"]["op"] == "fill with zeros"

    def test_proof_that_is_required(self, run):
        done = run("convert", "a.safetensors", "-o", "c.npz", "--rules", "rules.yaml", "--require", "proven")
        assert done.code == 2 and "2 rules are not proven: line 4 (q), line 5 (steps)" in done.err
