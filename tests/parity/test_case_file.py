"""Case files: what they may say, every fault at once with its line, and hostile ones within a second."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.parity import case_file
from ckptkit.parity.case_file import CaseText, InputText, SideText, load_case, reference

GOOD = """\
left:   {framework: torch, model: "nets:build_torch", checkpoint: a.pth}
right:  {framework: recorded, model: b.npz}
inputs: {shape: [2, 32, 32, 3], layout: NHWC, seed: 7}
stages: {"layer1": "block1", "layer2": "block2"}
tolerance: {relative: 5e-5, outputs: 1.0e-4}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.pth", "b.npz", "x.onnx", "rules.yaml"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def load(folder: Path, text: str) -> Any:
    path = folder / "case.yaml"
    path.write_text(text, encoding="utf-8")
    return load_case(path)


def test_a_case_of_the_issue_is_read(folder: Path):
    case = load(folder, GOOD)
    assert case.stages == {"layer1": "block1", "layer2": "block2"}
    assert (case.tolerance.stages.value, case.tolerance.stages.relative) == (5e-5, True)
    assert (case.tolerance.logits.value, case.tolerance.logits.relative) == (1e-4, False)
    assert case.place("a.pth") == folder.resolve() / "a.pth"
    (array,) = case.arrays().values()
    assert (array.shape, array.dtype) == ((2, 32, 32, 3), np.float32)
    assert abs(float(array.std()) - 1) < 0.05


@pytest.mark.parametrize(
    ("written", "framework"),
    [("PyTorch", "torch"), ("tf", "tensorflow"), ("saved-model", "tensorflow"), ("Keras", "keras")],
)
def test_other_words_for_a_framework(written: str, framework: str, folder: Path):
    text = GOOD.replace("framework: torch", f"framework: {written}")
    assert load(folder, text).text.left.framework == framework


def test_inputs_have_names_integers_their_range_and_files_their_keys(folder: Path):
    np.save(folder / "mask.npy", np.ones((2, 3), "f4"))
    np.savez(folder / "two.npz", a=np.zeros(2), b=np.ones(3))
    lines = """inputs:
  ids: {shape: [200, 16], dtype: int64, min: 5, max: 100}
  more: {shape: [200, 16], dtype: int64, min: 5, max: 100}
  mask: {file: mask.npy}
  one: {file: two.npz, key: b}
  flag: {shape: [64], dtype: bool}
"""
    arrays = load(
        folder, GOOD.replace("inputs: {shape: [2, 32, 32, 3], layout: NHWC, seed: 7}\n", lines)
    ).arrays()
    ids = arrays["ids"]
    assert (ids.dtype, ids.min(), ids.max()) == (np.int64, 5, 99)
    assert not np.array_equal(ids, arrays["more"])
    assert arrays["mask"].shape == (2, 3)
    assert arrays["one"].tolist() == [1, 1, 1]
    assert set(arrays["flag"].tolist()) == {True, False}


FAULTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "key": (
        "checkpoint:",
        "checkpiont:",
        ("line 1: unknown key left.checkpiont (did you mean checkpoint?)",),
    ),
    "framework": ("torch,", "mxnet,", ("line 1: left.framework: input should be 'torch'",)),
    "factory": ('"nets:build_torch"', "nets.py", ("line 1: 'nets.py' is not package.module:factory",)),
    "no file": ("a.pth", "c.pth", ("line 1: no such file 'c.pth' (from the folder of the case)",)),
    "no recording": ("b.npz", "c.npz", ("line 2: no such file 'c.npz'",)),
    "layout": ("[2, 32, 32, 3]", "[2, 32]", ("line 3: layout NHWC is of 4 axes, the shape has 2",)),
    "integers": ("layout: NHWC", "dtype: int64", ("line 3: random integers need max",)),
    "range": ("layout: NHWC", "dtype: int64, min: 4, max: 4", ("line 3: max must be above min (4)",)),
    "size": ("[2, 32, 32, 3]", "[65536, 65536]", ("line 3: more than 268,435,456 numbers",)),
    "negative": ("[2, 32", "[-2, 32", ("line 3: inputs.shape[0]: input should be greater than 0",)),
    "both": ("seed: 7", "file: b.npz", ("line 3: an input has either a shape or a file",)),
    "twice": ('"block2"', '"block1"', ("line 4: 'block1' is given twice as a stage of the right side",)),
    "tolerance": ("5e-5", "tight", ("line 5: tolerance.relative: input should be a valid number",)),
    "rules alone": ("checkpoint: a.pth", "rules: rules.yaml", ("line 1: rules need a checkpoint",)),
    "two recordings": (
        "b.npz}",
        "b.npz, checkpoint: a.pth}",
        ("line 2: a recorded side has one file: model",),
    ),
    "rules of a recording": ("b.npz}", "b.npz, rules: a.pth}", ("line 2: recorded has its own weights",)),
    "no model": ('model: "nets:build_torch", ', "", ("line 1: model is missing",)),
    "missing": (
        "right: ",
        "rihgt: ",
        ("line 1: right is missing", "line 2: unknown key rihgt (did you mean right?)"),
    ),
    "several": (
        'model: "nets:build_torch", checkpoint: a.pth}\n',
        "model: nets, checkpoint: c.pth}\n",
        ("2 faults", "line 1: 'nets' is not", "line 1: no such file 'c.pth'"),
    ),
}


@pytest.mark.parametrize(("old", "new", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_has_its_line(old: str, new: str, said: tuple[str, ...], folder: Path):
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        load(folder, GOOD.replace(old, new, 1))
    assert [words for words in said if words not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert "reference/cases.md" in str(caught.value)


def test_inputs_may_be_absent_only_beside_a_recording(folder: Path):
    without = GOOD.replace("inputs: {shape: [2, 32, 32, 3], layout: NHWC, seed: 7}\n", "")
    assert str(load(folder, without)) == "those of the recording"
    with pytest.raises(UsageError, match="inputs is missing: only a recorded side has some"):
        load(folder, without.replace("framework: recorded, model: b.npz", 'framework: torch, model: "a:b"'))


HOSTILE = {
    "code": "left: !!python/object/apply:os.system ['touch ran']\n",
    "expansion": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "cycle": "left: &l {framework: torch, model: *l}\nright: *l\ninputs: &i {x: *i}\n",
    "deep": "[" * 10_000,
    "long number": "timeout: " + "9" * 100_000 + "\n",
    "many stages": GOOD.replace(
        "stages: {", "stages: {" + ", ".join(f"s{i}: t" for i in range(20_000)) + ", "
    ),
    "many faults": "\n".join(f"k{i}: 1" for i in range(20_000)),
    "huge shape": GOOD.replace("[2, 32, 32, 3]", str([2**62] * 5_000)),
    "list": "- a\n- b\n",
    "nothing": "",
    "many inputs": GOOD.replace(
        "{shape: [2, 32, 32, 3], layout: NHWC, seed: 7}",
        "{" + ", ".join(f"i{n}: {{shape: [4096, 4096]}}" for n in range(3000)) + "}",
    ),
    "merged keys": "a: &a {x: 1}\n"
    + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}' if i else '*a'] * 9)}]}}" for i in range(12)),
    "long path": GOOD.replace("a.pth", "x" * 300_000),
    "nobody's home": GOOD.replace("a.pth", "~nosuchuser/a"),
    "NUL": GOOD.replace("a.pth", '"a\\0b"'),
    "device": GOOD.replace("shape: [2, 32, 32, 3], layout: NHWC, seed: 7", "file: /dev/zero"),
    "any difference": GOOD.replace("5e-5", ".inf"),
    "no timeout": GOOD + "timeout: 1000000000000000000000\n",
    "base 60": GOOD.replace("5e-5", "1" + ":59" * 20_000),
    "seed": GOOD.replace("seed: 7", "seed: " + "9" * 40),
    "not YAML": "left: {",
    "binary": "\x00\x01",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_ends_in_one_line_soon(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    began = time.process_time()
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    assert time.process_time() - began < 1
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 3000
    assert not (folder / "ran").exists()


def test_a_hostile_array_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1024), }".ljust(117) + b"\n"
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header)
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez_compressed(folder / "bomb.npz", a=np.zeros(1 << 18))
    monkeypatch.setattr(case_file, "_MAX_BYTES", 1 << 20)
    for name in ("huge.npy", "objects.npy", "bomb.npz"):
        inputs = f"file: {name}"
        case = load(folder, GOOD.replace("shape: [2, 32, 32, 3], layout: NHWC, seed: 7", inputs))
        began = time.process_time()
        with pytest.raises(UsageError) as caught:
            case.arrays()
        assert time.process_time() - began < 1
        assert name in str(caught.value)


def test_a_file_that_is_too_large_or_absent(folder: Path):
    with pytest.raises(UsageError, match="larger than 1,000,000 bytes"):
        load(folder, "#" * 1_000_001)
    with pytest.raises(NotFoundError, match="no such case file"):
        load_case(folder / "none.yaml")


def test_the_reference_names_every_key():
    text = reference()
    for kind in (CaseText, SideText, InputText):
        for name, field in kind.model_fields.items():
            assert f"| `{name}` |" in text
            assert field.description and field.description in text
