"""Pairs of real models under two sets of names: what names and shapes alone are worth."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.families.base import Structure as Site
from ckptkit.families.base import get_family
from ckptkit.rules.structure import Structure
from tests.support.judging import Judged, judged, specs_of
from tests.support.ported import PORTS, UNSEEN, Port


def of_family(family: str, variant: str, left: str, right: str) -> Port:
    """A family's two layouts."""
    site = Site(num_classes=17)
    one, other = (get_family(family).table(name, variant, site) for name in (left, right))
    port = Port(f"{variant} {left} {right}")
    for name, row in one.by_canonical.items():
        counter = name.endswith("num_batches_tracked")
        random = np.random.default_rng(zlib.crc32(name.encode()))
        values = np.int64(1000) if counter else random.standard_normal(row.canonical_shape, dtype=np.float32)
        port.source[row.external] = row.op.to_external(np.asarray(values), row.external_shape)
        if name in other.by_canonical:
            there = other.by_canonical[name]
            port.target[there.external] = there.op.to_external(np.asarray(values), there.external_shape)
            port.made_of[there.external] = frozenset({row.external})
    if left == "deeplab2":
        port.sorted_by_name()
    return port


FAMILIES = [
    (family, variant, left, right)
    for family, variant in (("moat", "tiny-moat0"), ("moganet", "moganet-xt"))
    for left, right in itertools.permutations(get_family(family).layouts, 2)
]


def cases() -> Iterator[object]:
    for name, make in {**PORTS, **UNSEEN}.items():
        yield pytest.param(make, id=name)
        yield pytest.param(lambda make=make: make().turned_round(), id=f"{name}-back")
    for row in FAMILIES:
        yield pytest.param(lambda row=row: of_family(*row), id="-".join(row[1:]))


def by_structure(port: Port) -> Judged:
    return judged(port, Structure(specs_of(port.source), specs_of(port.target)).matches)


@pytest.mark.parametrize("make", list(cases()))
def test_what_is_forced_is_right_and_the_rest_is_right_or_asked(make: Callable[[], Port]) -> None:
    port = make()
    found = by_structure(port)
    assert not found.wrong.get("proven")
    assert not found.wrong.get("forced"), found.wrong["forced"][:5]
    assert found.count("proven") == 0  # without values nothing is
    wrong = found.wrong.get("guessed", [])
    assert len(wrong) <= 0.01 * max(1, found.count("guessed")), wrong[:5]
    answered = sum(found.right.values()) - found.right.get("ambiguous", 0)
    assert answered + found.count("ambiguous") >= 0.95 * found.tensors


def test_most_is_decided_over_all_pairs() -> None:
    """A tool that asks about everything would be right, too."""
    asked = tensors = 0
    for make in {**PORTS, **UNSEEN}.values():
        found = by_structure(make())
        asked += found.count("ambiguous")
        tensors += found.tensors
    assert asked < 0.12 * tensors


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, DTYPES["float32"], shape)


def paired(left: list[TensorSpec], right: list[TensorSpec]) -> Structure:
    return Structure({one.name: one for one in left}, {one.name: one for one in right})


@pytest.mark.parametrize(
    ("left", "right", "sure", "axes"),
    [
        ("fc/kernel", "fc.weight", "guessed", "a b -> b a"),  # TensorFlow's are `i o`
        ("fc.weight", "head.fc.weight", "guessed", " -> "),
        ("fc/table", "fc.table", "ambiguous", " -> "),  # nothing says what it is
    ],
)
def test_a_square_kernel_is_never_decided_in_silence(left: str, right: str, sure: str, axes: str) -> None:
    (match,) = paired([spec(left, 8, 8)], [spec(right, 8, 8)]).matches
    assert (match.sure, match.turn.axes) == (sure, axes)
    assert match.others  # what the shapes allow besides


def test_kernels_that_are_not_square_tell_how_the_square_ones_are_turned() -> None:
    left = [spec(f"l{i}/w", 8, 8 if i else 4) for i in range(3)]
    right = [spec(f"l{i}.w", *((8, 8) if i else (4, 8))) for i in range(3)]
    found = {match.targets[0]: (match.sure, match.turn.axes) for match in paired(left, right).matches}
    assert found["l0.w"] == ("forced", "a b -> b a")
    assert found["l1.w"] == ("guessed", "a b -> b a")


def test_what_nothing_decides_is_asked_with_its_candidates() -> None:
    left = [spec(f"block_{i}/{name}/gamma", 8) for i in range(4) for name in ("alpha", "omega")]
    right = [spec(f"layers.{i}.{name}.weight", 8) for i in range(4) for name in ("red", "blue")]
    found = paired(left, right)
    assert {match.sure for match in found.matches} == {"ambiguous"}
    (question,) = found.questions
    assert set(question.sources) == {"block_*/alpha", "block_*/omega"}
    assert set(question.targets) == {"layers.*.red", "layers.*.blue"}


def test_a_bias_is_not_paired_with_a_norm_of_its_size() -> None:
    """The source's convolutions have biases and the target's have none, whose norms are unpaired."""
    left = [*(spec(f"c{i}/kernel", 3, 3, 4, 8) for i in range(3)), *(spec(f"c{i}/bias", 8) for i in range(3))]
    right = [
        *(spec(f"c{i}.weight", 8, 4, 3, 3) for i in range(3)),
        *(spec(f"n{i}.{leaf}", 8) for i in range(3) for leaf in ("weight", "bias")),
    ]
    targets = {match.targets[0] for match in paired(left, right).matches}
    assert targets == {f"c{i}.weight" for i in range(3)}


def test_q_k_v_in_an_order_that_the_name_does_not_tell_are_asked() -> None:
    left = [spec(f"b_{i}/{name}/kernel", 8, 8) for i in range(3) for name in ("query", "key", "value")]
    right = [spec(f"b.{i}.query_key_value.weight", 24, 8) for i in range(3)]
    found = paired(left, right)
    assert {match.sure for match in found.matches} == {"ambiguous"}
    assert found.questions[0].text == "in which order are the parts?"


@pytest.mark.parametrize("shift", [0, 1])
def test_numbers_that_only_count_layers_of_a_class_do_not_decide_between_branches(shift: int) -> None:
    """Keras numbers layers as they are made, and in a file as they run: parallel branches change places."""
    sizes = [4, 8, 8, 16, 8, 8, 32]
    left = [spec(f"conv2d_{n + 1}/kernel", 3, 3, 4, size) for n, size in enumerate(sizes)]
    right = [spec(f"layers/conv2d_{n + 1 + shift}/vars/0", 3, 3, 4, size) for n, size in enumerate(sizes)]
    sure = {match.sources[0]: match.sure for match in paired(left, right).matches}
    assert {name for name, one in sure.items() if one == "ambiguous"} == {
        f"conv2d_{n}/kernel" for n in (2, 3, 5, 6)
    }
    assert {sure[f"conv2d_{n}/kernel"] for n in (1, 4, 7)} == {"guessed"}


def test_layers_of_one_size_with_unrelated_names_take_no_longer() -> None:
    words = [f"w{''.join(chr(97 + int(digit)) for digit in f'{n:04}')}" for n in range(1000)]
    started = time.process_time()
    matches = Structure(
        shaped(dict.fromkeys(words, (8, 8))), shaped({f"{word[::-1]}.weight": (8, 8) for word in words})
    ).matches
    assert time.process_time() - started < 3
    assert len(matches) == 1000
    assert {match.sure for match in matches} == {"ambiguous"}


def test_weight_norm_by_either_name() -> None:
    left = {"pos.weight_g": (1, 1, 8), "pos.weight_v": (16, 4, 8), "fc.weight_g": (1, 1, 8)}
    left["fc.weight_v"] = (16, 4, 8)
    right = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): shape
        for name, shape in left.items()
    }
    found = {m.sources[0]: m.targets[0] for m in Structure(shaped(left), shaped(right)).matches}
    assert found == dict(zip(left, right, strict=True))


def shaped(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, DTYPES["float32"], shape) for name, shape in shapes.items()}


def test_layers_that_nobody_named_follow_the_order_in_which_they_were_made() -> None:
    """A Keras file numbers them by the graph, here at random; branches are alike, blocks end in one more."""
    source: dict[str, tuple[int, ...]] = {}
    target: dict[str, tuple[int, ...]] = {}
    called, truth, made = {}, {}, 0
    numbers = iter(np.random.default_rng(0).permutation(8 * 6 + 3))

    def conv(name: str, width: int, depth: int, *, norm: bool = True) -> None:
        nonlocal made
        path = f"layers/conv2d_{next(numbers)}/vars/0"
        source[path], target[f"{name}.conv.weight"] = (1, 1, depth, width), (width, depth, 1, 1)
        called[path] = f"layers/conv2d_{made + 70}/vars/0"
        truth[f"{name}.conv.weight"] = path
        for kind, leaf in enumerate(("bias", "running_mean", "running_var")):
            vector = f"layers/batch_normalization_{path.split('/')[1][7:]}/vars/{kind}"
            source[vector], target[f"{name}.bn.{leaf}"] = (width,), (width,)
            called[vector] = f"layers/batch_normalization_{made + 70}/vars/{kind}"
            truth[f"{name}.bn.{leaf}"] = vector
        target[f"{name}.bn.weight"] = (width,)
        made += 1

    conv("stem.0", 32, 3)
    for block in range(8):
        for branch, steps in enumerate(([8], [8, 8], [8, 12, 16])):
            for step, width in enumerate(steps):
                conv(f"blocks.{block}.branch{branch}.{step}", width, steps[step - 1] if step else 32)
        up = f"blocks.{block}.up.weight"
        target[up], source[f"layers/block{block + 1}_up/vars/0"] = (32, 32, 1, 1), (1, 1, 32, 32)
        truth[up] = f"layers/block{block + 1}_up/vars/0"
    conv("head.0", 40, 32)
    conv("head.1", 44, 40)
    matches = Structure(shaped(dict(sorted(source.items()))), shaped(target), called=(called, {})).matches
    found = {match.targets[0]: (match.sources[0], match.sure) for match in matches}
    assert {name: pair[0] for name, pair in found.items()} == truth
    assert sum(sure == "ambiguous" for _, sure in found.values()) < 0.2 * len(found)


def test_variables_of_a_keras_file_are_known_by_their_layer() -> None:
    """A batch norm without a scale has three, a separable convolution two kernels and a bias."""
    left = [spec(f"bn/{leaf}", 6) for leaf in ("beta", "moving_mean", "moving_variance")]
    left += [
        spec("sep/depthwise_kernel", 3, 3, 6, 1),
        spec("sep/pointwise_kernel", 1, 1, 6, 9),
        spec("sep/bias", 9),
    ]
    right = [spec(f"layers/batch_normalization/vars/{n}", 6) for n in range(3)]
    right += [spec(f"layers/separable_conv2d/vars/{n}", *left[3 + n].shape) for n in range(3)]
    found = {match.sources[0]: match.targets[0] for match in paired(left, right).matches}
    assert found == {one.name: other.name for one, other in zip(left, right, strict=True)}


def test_a_thousand_layers_take_seconds() -> None:
    import time

    left = [
        spec(f"net/block_{i}/{n}/kernel", 8, 8) for i in range(250) for n in ("query", "key", "value", "out")
    ]
    right = [spec(f"layers.{i}.attn.{n}.weight", 8, 8) for i in range(250) for n in ("q", "k", "v", "proj")]
    start = time.process_time()
    found = paired(left, right)
    assert time.process_time() - start < 10
    assert len(found.matches) == 1000
