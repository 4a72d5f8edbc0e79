"""`rules suggest` on files: what is drafted converts, and what is left over is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ckptkit
from ckptkit.base.errors import CkptkitError, ConversionError, UsageError
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.rules.file import load_rules
from tests.support.ported import PORTS, Array, Port
from tests.support.tensors import specs_of, write_all


def save(path: Path, arrays: dict[str, Array]) -> Path:
    np.savez(path, **arrays)
    return path


def load(path: Path) -> dict[str, Array]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def suggested(tmp_path: Path, port: Port, **options: bool) -> ckptkit.api.checkpoints.Suggestion:  # type: ignore[name-defined]
    found = ckptkit.suggest_rules(
        save(tmp_path / "a.npz", port.source), save(tmp_path / "b.npz", port.target), **options
    )
    found.write(tmp_path / "rules.yaml")
    return found


@pytest.mark.parametrize("name", ["vit_jax", "resnet50", "t5_fused", "experts", "scanned", "unet"])
def test_the_file_that_is_proven_converts_both_ways_bit_for_bit(name: str, tmp_path: Path) -> None:
    port = PORTS[name]()
    found = suggested(tmp_path, port)
    assert found.ok
    assert found.by == "values"
    assert set(found.tensors.items()) >= {("guessed", 0), ("ambiguous", 0)}
    rules = load_rules(tmp_path / "rules.yaml")
    assert {rule.sure for rule in rules.rules} <= {"proven"}
    ckptkit.convert(tmp_path / "a.npz", output=tmp_path / "made.npz", rules=tmp_path / "rules.yaml")
    assert same(load(tmp_path / "made.npz"), port.target)
    ckptkit.convert(
        tmp_path / "b.npz", output=tmp_path / "back.npz", rules=tmp_path / "rules.yaml", reverse=True
    )
    counted = {name for name in port.source if name.endswith("num_batches_tracked")}
    wanted = {name: array for name, array in port.source.items() if name not in counted}
    assert same(load(tmp_path / "back.npz"), wanted)


TIED = """\
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = torch.nn.Embedding(11, 6)
        self.encoder = torch.nn.Linear(6, 11, bias=False)
        self.encoder.weight = self.shared.weight
        self.lm_head = torch.nn.Linear(6, 11)
        self.lm_head.weight = self.shared.weight

build = Net
"""


@pytest.mark.parametrize("side", ["function", "checkpoint", "both"])
def test_tied_weights_are_covered_by_their_twin(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("tied_nets.py").write_text(TIED)
    names: dict[str, object] = {}
    exec(TIED, names)
    model = names["Net"]()  # type: ignore[operator]
    arrays = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    plain = {"tok/embedding": arrays["shared.weight"], "lm_head/bias": arrays["lm_head.bias"]}
    torch.save(model.state_dict(), "tied.pth")
    if side == "both":
        first = torch.from_numpy(plain["tok/embedding"].copy())
        tensors = {"tok.weight": first, "lm_head.weight": first, "lm_head.bias": model.lm_head.bias.detach()}
        torch.save({**tensors, "other.weight": first, "third.weight": first}, "a.pth")
    source = Path("a.pth") if side == "both" else save(tmp_path / "a.npz", plain)
    found = ckptkit.suggest_rules(source, "tied_nets:build" if side == "function" else Path("tied.pth"))
    assert found.ok, found.text
    assert found.tensors["ambiguous"] == 0
    sure = "proven" if side != "function" else "forced"
    assert found.tensors[sure] == 4  # type: ignore[index]
    assert any("of the target are others under a second name" in note for note in found.notes)
    if side == "both":  # names that agree first, then one by one; what is left over is left out by name
        rules = {draft.keys["target"]: draft.keys for draft in found.drafts}
        assert rules["lm_head.weight"]["source"] == "lm_head.weight"
        assert rules["encoder.weight"]["source"] == "other.weight"
        assert [one.reason for one in found.ignores] == ["the same as tok.weight"]
    found.write(Path("rules.yaml"))
    ckptkit.convert(source, output=Path("made.npz"), rules="rules.yaml")
    assert same(load(Path("made.npz")), arrays)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
@pytest.mark.parametrize("wide_first", [True, False])
def test_other_element_types_are_compared_after_rounding(
    narrow: str, wide_first: bool, tmp_path: Path
) -> None:
    """Half-precision copies of the same weights, vectors left in float32; some biases are zeros."""
    import ml_dtypes

    half = np.dtype(getattr(ml_dtypes, narrow, None) or narrow)
    port = PORTS["bert_fused"]()
    for name, array in port.target.items():
        if name.endswith("norm1.bias") or name.endswith("fc1.bias"):
            array[:] = 0
            (first,) = port.made_of[name]
            port.source[first][:] = 0
    wide, small = (port.source, port.target) if wide_first else (port.target, port.source)
    small = {n: array.astype(half) if array.ndim > 1 else array for n, array in small.items()}
    sides = (wide, small) if wide_first else (small, wide)
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path, arrays in zip(paths, sides, strict=True):
        write_all(writer_for("safetensors")(path, specs_of(arrays), {}), arrays)
    found = ckptkit.suggest_rules(*paths)
    assert found.ok, found.text
    assert found.by == "values"
    assert found.tensors["proven"] + found.tensors["forced"] == sum(found.tensors.values())
    rounded = [draft for draft in found.drafts if draft.rounded]
    assert rounded and all(draft.rounded == narrow for draft in rounded)
    assert {draft.keys["dtype"] for draft in rounded} == {narrow if wide_first else "float32"}
    assert f"}}  # up to rounding to {narrow}\n" in found.text
    assert any(f"up to rounding to {narrow}" in note for note in found.notes)
    found.write(tmp_path / "rules.yaml")
    ckptkit.convert(paths[0], output=tmp_path / "made.safetensors", rules=tmp_path / "rules.yaml")
    with open_reader(tmp_path / "made.safetensors") as reader:
        made = {name: np.array(reader.read(name)) for name in reader.specs}
    assert {n: a.dtype for n, a in made.items()} == {n: a.dtype for n, a in sides[1].items()}
    if wide_first:
        assert all(made[name].tobytes() == array.tobytes() for name, array in sides[1].items())
    else:
        assert all((made[n].astype(half) == a.astype(half)).all() for n, a in sides[1].items())


def test_rounding_pairs_no_other_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(0).standard_normal((2, 6, 8), dtype=np.float32)
    near = random[1].astype(np.float16)
    near[0, 0] = np.nextafter(near[0, 0], np.float16(9))
    one = save(tmp_path / "a.npz", {"x": random[0], "y": random[1]})
    other = save(tmp_path / "b.npz", {"p": random[0].astype(np.float16).T, "q": near.T})
    found = ckptkit.suggest_rules(one, other)
    sure = {draft.keys["source"]: draft.sure for draft in found.drafts}
    assert sure["x"] == "proven"
    assert sure["y"] != "proven"


def keras_file(path: Path, layers: dict[str, tuple[str, list[Array]]]) -> Path:
    """Layers as Keras saves them: in groups of their class, their names in attributes."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for group, (name, arrays) in layers.items():
            variables = file.create_group(f"{group}/vars")
            variables.attrs["name"] = name
            for n, array in enumerate(arrays):
                variables[str(n)] = array
        file.create_group("vars").attrs["name"] = "functional_7"
    return path


def test_names_of_keras_layers_tell_more_than_their_numbers(tmp_path: Path) -> None:
    """Layers of one size in another order than the target's; the names alone say which is which."""
    random = np.random.default_rng(3)
    names = ["b_proj", "a_expand", "a_proj", "b_expand"]
    layers = {
        f"layers/dense{f'_{n}' if n else ''}": (
            name,
            [random.random((6, 6), np.float32), np.full(6, n, "f4")],
        )
        for n, name in enumerate(names)
    }
    inner = {"layers/block/dense": ("head", [random.random((6, 9), np.float32), np.zeros(9, "f4")])}
    unnamed = {"layers/conv2d_3": ("conv2d_97", [random.random((1, 1, 3, 4), np.float32)])}
    source = keras_file(tmp_path / "a.weights.h5", {**layers, **inner, **unnamed})
    target = {f"{name.replace('_', '.')}.weight": [6, 6] for name in sorted(names)}
    target |= {f"{name.replace('_', '.')}.bias": [6] for name in sorted(names)}
    target |= {"head.weight": [9, 6], "head.bias": [9], "stem.weight": [4, 3, 1, 1]}
    (tmp_path / "b.json").write_text(json.dumps(target))
    with open_reader(source) as reader:
        assert reader.called["layers/dense_1/vars/0"] == "layers/a_expand/vars/0"
        assert reader.called["layers/block/dense/vars/1"] == "layers/block/head/vars/1"
        assert reader.called["layers/conv2d_3/vars/0"] == "layers/conv2d_97/vars/0"
    found = ckptkit.suggest_rules(source, tmp_path / "b.json")
    assert found.ok, found.text
    pairs = {match.sources[0]: match.targets[0] for match in found.matches}
    for n, name in enumerate(names):
        layer = f"layers/dense{f'_{n}' if n else ''}/vars"
        assert pairs[f"{layer}/0"] == f"{name.replace('_', '.')}.weight"
        assert pairs[f"{layer}/1"] == f"{name.replace('_', '.')}.bias"


def test_keras_layers_of_one_name_stay_apart(tmp_path: Path) -> None:
    arrays = {f"layers/dense{n}": ("twin", [np.full((2, 2), len(n) + 1, "f4")]) for n in ("", "_1")}
    source = keras_file(tmp_path / "a.weights.h5", arrays)
    (tmp_path / "b.json").write_text(json.dumps({"fc0.weight": [2, 2], "fc1.weight": [2, 2]}))
    found = ckptkit.suggest_rules(source, tmp_path / "b.json")
    assert {name for match in found.matches for name in match.sources} == {
        "layers/dense/vars/0",
        "layers/dense_1/vars/0",
    }


def test_what_is_guessed_is_named_when_it_is_used(tmp_path: Path) -> None:
    port = PORTS["mixer"]()
    found = suggested(tmp_path, port, values=False)
    assert found.ok
    assert found.by == "names and shapes"
    ckptkit.convert(tmp_path / "a.npz", output=tmp_path / "made.npz", rules=tmp_path / "rules.yaml")
    assert same(load(tmp_path / "made.npz"), port.target)


def test_ambiguous_rules_are_refused_until_they_are_answered(tmp_path: Path) -> None:
    port = PORTS["bert_fused"]()
    found = suggested(tmp_path, port, values=False)
    assert not found.ok
    assert found.tensors["ambiguous"] == 48
    (question,) = found.questions
    assert set(question.targets) == {"blocks.*.norm1", "blocks.*.norm2"}
    file = tmp_path / "rules.yaml"
    with pytest.raises(UsageError, match="4 rules are ambiguous"):
        ckptkit.convert(tmp_path / "a.npz", output=tmp_path / "made.npz", rules=file)
    file.write_text(file.read_text().replace(", sure: ambiguous", ""))
    ckptkit.convert(tmp_path / "a.npz", output=tmp_path / "made.npz", rules=file)
    assert load(tmp_path / "made.npz").keys() == port.target.keys()


def test_a_head_that_was_trained_further_is_a_guess_beside_what_is_proven(tmp_path: Path) -> None:
    port = PORTS["mixer"]()
    port.target["head.weight"] = port.target["head.weight"] + 1
    found = suggested(tmp_path, port)
    sure = {target: draft.sure for draft in found.drafts for target in draft.targets}
    assert sure.pop("head.weight") == "guessed"
    assert set(sure.values()) == {"proven"}


def test_what_training_needs_is_left_out_by_name(tmp_path: Path) -> None:
    port = PORTS["t5"]()
    for name in list(port.source):
        port.source[f"{name}/adam_m"] = port.source[name] * 2
    port.source["global_step"] = np.array(7)
    found = suggested(tmp_path, port)
    assert found.ok
    assert {one.reason for one in found.ignores} == {
        "counts training steps",
        "per-variable state of the optimizer",
    }
    assert sum(len(one.tensors) for one in found.ignores) == len(port.source) // 2 + 1
    ckptkit.convert(tmp_path / "a.npz", output=tmp_path / "made.npz", rules=tmp_path / "rules.yaml")
    assert same(load(tmp_path / "made.npz"), port.target)


def test_what_one_side_lacks_is_told_and_not_made_up(tmp_path: Path) -> None:
    port = PORTS["missing_biases"]()
    found = suggested(tmp_path, port)
    assert not found.ok
    assert {spec.name for spec in found.uncovered} == {f"blocks.{i}.conv1.bias" for i in range(6)}
    assert '#   "blocks.0.conv1.bias" [8]' in found.text
    back = ckptkit.suggest_rules(tmp_path / "b.npz", tmp_path / "a.npz")
    assert {spec.name for spec in back.unused} == {f"blocks.{i}.conv1.bias" for i in range(6)}


def test_names_and_shapes_alone_are_enough(tmp_path: Path) -> None:
    port = PORTS["gpt2"]()
    shapes = tmp_path / "shapes.json"
    shapes.write_text(json.dumps({name: list(array.shape) for name, array in port.target.items()}))
    found = ckptkit.suggest_rules(save(tmp_path / "a.npz", port.source), shapes)
    assert found.ok
    assert found.tensors["proven"] == 0


def test_two_models_without_a_layer_in_common_are_told_so(tmp_path: Path) -> None:
    one = save(tmp_path / "a.npz", {"a": np.zeros((2, 3), np.float32)})
    other = save(tmp_path / "b.npz", {"b": np.zeros((5, 7), np.float32)})
    with pytest.raises(ConversionError, match="no layers in common") as caught:
        ckptkit.suggest_rules(one, other)
    assert caught.value.hint == f"Run: ckptkit inspect {one}"


def test_the_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    found = suggested(tmp_path, PORTS["vgg16"]())
    before = (tmp_path / "rules.yaml").read_text()
    with pytest.raises(UsageError, match="exists already"):
        found.write(tmp_path / "rules.yaml")
    assert (tmp_path / "rules.yaml").read_text() == before
    assert found.write(tmp_path / "rules.yaml", force=True).exists()


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"a": [1, "x"]}', '{"a": [-1]}', "{}", '{"a": [99999999999999999999]}', '{"tensors": [{}]}'],
)
def test_a_hostile_json_file_ends_in_a_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(CkptkitError):
        ckptkit.suggest_rules(save(tmp_path / "a.npz", {"a": np.zeros(3, np.float32)}), tmp_path / "b.json")


def test_many_tensors_of_one_name_and_size_take_seconds(tmp_path: Path) -> None:
    """Nothing tells them apart, in patterns of five numbers and a thousand layers."""
    import time

    for side in "ab":
        names = {f"{side}{i % 2}.{i % 3}.{i % 5}.{i % 7}.{i}.w": [8, 8] for i in range(1000)}
        (tmp_path / f"{side}.json").write_text(json.dumps(names))
    start = time.process_time()
    found = ckptkit.suggest_rules(tmp_path / "a.json", tmp_path / "b.json")
    assert time.process_time() - start < 30
    assert sum(found.tensors.values()) == 1000
