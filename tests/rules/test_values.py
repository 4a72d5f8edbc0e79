"""Pairs of files that hold the same values: everything is proven, and nothing that is not."""

from __future__ import annotations

import numpy as np
import pytest

from ckptkit.rules.structure import Match, Structure
from ckptkit.rules.values import Values, fingerprint, same_values
from tests.rules.test_structure import FAMILIES, of_family
from tests.support.judging import Arrays, judged, made_by, specs_of
from tests.support.ported import PORTS, UNSEEN, Array, Port


def proven(source: dict[str, Array], target: dict[str, Array]) -> list[Match]:
    one, other = Arrays(source), Arrays(target)
    left, right = (Values.of(side, lambda _: None) for side in (one, other))
    return same_values(one, other, left, right)


@pytest.mark.parametrize("back", [False, True], ids=["", "back"])
@pytest.mark.parametrize("name", [*PORTS, *UNSEEN])
def test_every_tensor_is_proven_and_right(name: str, back: bool) -> None:
    port = {**PORTS, **UNSEEN}[name]()
    port = port.turned_round() if back else port
    found = judged(port, proven(port.source, port.target))
    single = sum(
        bool(port.made_of.get(name)) and array.size == 1 and array.reshape(-1)[0] in (0, 1)
        for name, array in port.target.items()
    )
    assert not found.wrong
    assert found.right == {"proven": found.tensors - single}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id="-".join(row[1:]), marks=() if "torch" in row[2:] else pytest.mark.slow)
        for row in FAMILIES
    ],
)
def test_every_tensor_of_the_families_is_proven_and_the_counters_follow_their_norms(
    row: tuple[str, ...],
) -> None:
    port = of_family(*row)
    found = judged(
        port,
        Structure(specs_of(port.source), specs_of(port.target), proven(port.source, port.target)).matches,
    )
    counters = sum(name.endswith("num_batches_tracked") for name in port.target)
    assert not found.wrong
    assert found.right.get("proven") == found.tensors - counters
    assert found.right.get("forced", 0) == counters  # all of them count 1000 steps


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_a_value_repeated_has_no_identity() -> None:
    same = {"a": np.ones(8, np.float32), "b": np.zeros(4, np.float32), "c": random(8)}
    found = proven(same, {f"x.{name}": array for name, array in same.items()})
    assert [match.sources for match in found] == [("c",)]


def test_two_tensors_of_the_same_values_are_not_told_apart() -> None:
    tied = random(6, 4)
    assert proven({"wte": tied, "head": tied}, {"a": tied.T, "b": tied.T}) == []


def test_one_bit_makes_another_tensor() -> None:
    source = random(5, 7)
    other = source.T.copy()
    other.view(np.uint32)[3, 2] ^= 1
    assert proven({"a": source}, {"b": other}) == []
    assert len(proven({"a": source}, {"b": source.T})) == 1


def test_equal_sums_are_not_enough() -> None:
    """The same elements in an order that no turn gives."""
    source = random(4, 6)
    shuffled = np.random.default_rng(1).permutation(source.reshape(-1)).reshape(6, 4)
    assert fingerprint(source)[0] == fingerprint(shuffled)[0]
    assert proven({"a": source}, {"b": shuffled}) == []


def test_a_symmetric_matrix_does_not_tell_whether_it_is_transposed() -> None:
    half = random(6, 6)
    assert proven({"a": half + half.T}, {"b": half + half.T}) == []


def test_parts_of_different_lengths() -> None:
    q, k, v = random(8, 5, seed=1), random(2, 5, seed=2), random(2, 5, seed=3)
    target = {"fused": np.concatenate([q, k, v])}
    (match,) = proven({"x": v.T, "y": q.T, "z": k.T}, target)
    assert match.sources == ("y", "z", "x")
    assert np.array_equal(made_by(match, {"x": v.T, "y": q.T, "z": k.T})["fused"], target["fused"])


@pytest.mark.parametrize("forward", [True, False])
def test_parts_of_each_head_together(forward: bool) -> None:
    """As GPT-NeoX has them: (heads three dim)."""
    parts = {name: random(12, 7, seed=n) for n, name in enumerate(("query", "key", "value"))}
    fused = {"qkv": np.stack([one.reshape(4, 3, 7) for one in parts.values()], 1).reshape(36, 7)}
    (match,) = proven(parts, fused) if forward else proven(fused, parts)
    assert match.over == "4"
    assert (match.sources if forward else match.targets) == ("query", "key", "value")


def test_a_stack_along_another_axis() -> None:
    layers = {f"layer_{i}/w": random(4, 6, seed=i) for i in range(5)}
    target = {"w": np.stack(list(layers.values()), 1)}
    (match,) = proven(layers, target)
    assert (match.operation, match.axis) == ("stack", 1)
    assert np.array_equal(made_by(match, layers)["w"], target["w"])


def test_the_layer_of_a_proven_kernel_has_the_other_bias_too() -> None:
    """Biases are zeros after initialisation; their kernels are not."""
    port = Port("fresh")
    for i in range(4):
        port.both(f"net/dense_{i}", f"layers.{3 - i}", (6, 6), "linear", bias=False)
        port.source[f"net/dense_{i}/bias"] = port.target[f"layers.{3 - i}.bias"] = np.zeros(6, np.float32)
    found = Structure(specs_of(port.source), specs_of(port.target), proven(port.source, port.target)).matches
    pairs = {match.sources[0]: (match.targets[0], match.sure) for match in found}
    for i in range(4):
        assert pairs[f"net/dense_{i}/kernel"] == (f"layers.{3 - i}.weight", "proven")
        assert pairs[f"net/dense_{i}/bias"] == (f"layers.{3 - i}.bias", "forced")


def test_types_are_compared_by_their_bits() -> None:
    assert proven({"a": random(9)}, {"b": random(9).astype(np.float64)}) == []
    negative = {"a": np.array([0.0, -0.0, 1.0], np.float32)}
    assert proven(negative, {"b": np.array([-0.0, 0.0, 1.0], np.float32)}) == []
