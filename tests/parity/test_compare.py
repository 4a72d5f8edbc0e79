from __future__ import annotations

import math

import numpy as np
import pytest

from ckptkit.parity.compare import (
    TOLERANCES,
    Limit,
    Tolerance,
    compare,
    compare_output,
    top_agreement,
)

SIDES = ("Keras", "PyTorch")
RELATIVE = Limit(1e-3, relative=True)
ABSOLUTE = Limit(1e-3, relative=False)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_figures_are_those_of_the_definition():
    reference, candidate = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    a, b = reference.astype("float64").ravel(), candidate.astype("float64").ravel()
    found = compare_output("stage1", reference, candidate, RELATIVE, sides=SIDES)
    assert found.scale == max(abs(a.min()), abs(a.max()))
    assert found.max_abs == max(abs(x - y) for x, y in zip(a, b, strict=True))
    assert found.mean_abs == pytest.approx(math.fsum(abs(x - y) for x, y in zip(a, b, strict=True)) / 120)
    assert found.relative == pytest.approx(found.max_abs / found.scale)
    assert found.cosine == pytest.approx(math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b)))
    assert found.shape == (2, 3, 4, 5)
    assert found.verdict == "differs"


def test_a_difference_smaller_than_float32_resolves_at_this_size_is_still_seen():
    # In float32, 1e8 + 1 - 1e8 would be 0 for one of the two; the comparison runs in float64.
    reference = np.array([[1e8, 1.0], [3.0, 4.0]])
    candidate = np.array([[1e8 + 1, 1.0], [3.0, 4.0]])
    assert compare_output("stage1", reference, candidate, ABSOLUTE, sides=SIDES).max_abs == 1.0


@pytest.mark.parametrize(
    ("limit", "factor", "verdict"),
    [
        (RELATIVE, 0.99, "agrees"),
        (RELATIVE, 1.01, "differs"),
        (ABSOLUTE, 0.99, "agrees"),
        (ABSOLUTE, 1.01, "differs"),
    ],
)
def test_the_limit_is_where_it_says(limit: Limit, factor: float, verdict: str):
    reference = np.array([[8.0, -1.0], [2.0, 1.0]])
    allowed = limit.value * (8.0 if limit.relative else 1.0)
    candidate = reference.copy()
    candidate[1, 1] += allowed * factor
    found = compare_output("x", reference, candidate, limit, sides=SIDES)
    assert found.verdict == verdict
    assert found.ok is (verdict == "agrees")
    assert bool(found.reason) is not found.ok


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_values_that_are_no_numbers_never_agree(value: float, sides: tuple[bool, bool]):
    outputs = [random(2, 10), random(2, 10)]
    for output, spoiled in zip(outputs, sides, strict=True):
        if spoiled:
            output[1, 3] = value
    found = compare_output("logits", *outputs, Limit(math.inf, relative=False), sides=SIDES)
    assert found.verdict == "not finite"
    assert [side in found.reason for side in SIDES] == list(sides)
    assert "1 of 20" in found.reason
    assert found.to_json()["max_abs"] is None


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (np.zeros((2, 4), np.float32), "all values are 0"),
        (np.full((2, 4), 7.0, np.float32), "all values are 7"),
        (np.tile(random(1, 4), (2, 1)), "different inputs give the same output"),
    ],
)
def test_outputs_that_say_nothing_do_not_count_as_agreement(output: np.ndarray, says: str):
    found = compare_output("stage1", output, output.copy(), RELATIVE, sides=SIDES)
    assert found.verdict == "degenerate"
    assert says in found.reason
    assert found.max_abs == 0


def test_one_input_may_not_be_called_the_same_as_itself():
    assert compare_output("stage1", random(1, 4), random(1, 4), RELATIVE, sides=SIDES).ok


def test_another_shape_is_a_disagreement_that_names_both():
    found = compare_output("stage1", random(1, 4, 4, 2), random(1, 3, 4, 2), RELATIVE, sides=SIDES)
    assert found.verdict == "differs"
    assert "[1, 3, 4, 2] on the PyTorch side, [1, 4, 4, 2] on the Keras side" in found.reason


def test_stages_and_logits_have_limits_of_their_own():
    outputs = {"stage1": random(2, 4), "logits": random(2, 4, seed=2)}
    shifted = {name: output + np.float32(0.01) for name, output in outputs.items()}
    tolerance = Tolerance(Limit(1.0, relative=True), Limit(1e-4, relative=False))
    stage, logits = compare(outputs, shifted, tolerance)
    assert (stage.verdict, logits.verdict) == ("agrees", "differs")


def test_different_kinds_of_models_cannot_be_compared():
    with pytest.raises(ValueError, match="logits"):
        compare({"stage1": random(1, 2)}, {"logits": random(1, 2)}, TOLERANCES["float32"])


def test_the_stated_tolerances():
    float32 = TOLERANCES["float32"]
    assert (float32.stages, float32.logits) == (Limit(5e-5, relative=True), Limit(1e-4, relative=False))
    # Ten unit roundoffs: finfo.eps is twice the unit roundoff.
    assert TOLERANCES["float16"].stages.value == pytest.approx(5 * float(np.finfo(np.float16).eps))
    assert TOLERANCES["bfloat16"].stages.value == pytest.approx(10 * 2.0**-8)
    assert set(TOLERANCES) == {"float32", "float16", "bfloat16"}


def test_top_agreement_counts_answers():
    reference = np.array(
        [[9, 8, 7, 6, 5, 0, 0.5], [9, 8, 7, 6, 5, 0, 0.5], [0, 8, 7, 6, 5, 9, 0.5]], "float32"
    )
    candidate = np.array(
        [[9, 8, 7, 6, 5, 0, 0.5], [8, 9, 7, 6, 5, 0, 0.5], [0, 8, 7, 6, 0.4, 9, 5]], "float32"
    )
    outputs = {"logits": reference}, {"logits": candidate}
    found = top_agreement(*outputs, compare(*outputs, TOLERANCES["float32"]))
    assert found is not None
    assert (found.batch, found.top1, found.top5, found.classes) == (3, 2, 2, 5)
    assert not found.one_answer
    assert str(found) == "top-1 2/3, top-5 2/3"


def test_top_agreement_says_when_it_proves_little():
    logits = {"logits": np.array([[1, 2, 0], [0, 5, 1]], "float32")}
    found = top_agreement(logits, logits, compare(logits, logits, TOLERANCES["float32"]))
    assert found is not None
    assert found.classes == 3
    assert found.one_answer
    assert "proves little" in str(found)


@pytest.mark.parametrize("outputs", [{"stage1": random(2, 3)}, {"logits": np.full((2, 3), np.nan)}])
def test_there_is_no_top_agreement_without_logits_that_can_be_ranked(outputs: dict[str, np.ndarray]):
    assert top_agreement(outputs, outputs, compare(outputs, outputs, TOLERANCES["float32"])) is None
