"""Rules made of pairs of tensors: as few as are right, read by the parser and by the planner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.convert.by_rules import assign
from ckptkit.rules.drafting import Draft, Drafted, DraftIgnore, drafts_of
from ckptkit.rules.file import rules_in
from ckptkit.rules.structure import Match, Question, Structure
from ckptkit.rules.turning import Turn
from ckptkit.rules.values import Values, same_values
from tests.rules.test_file import assert_same, convert, held, write
from tests.support.judging import Arrays as Read
from tests.support.judging import specs_of
from tests.support.ported import PORTS, UNSEEN


def specs(names: dict[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, DTYPES["float32"], shape) for name, shape in names.items()}


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def lines(
    pairs: dict[str, str], extra: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """Names of the rules that some pairs become, other tensors being there too."""
    source, target = (
        specs(dict.fromkeys((*names, *others), (4,)))
        for names, others in ((pairs, extra), (pairs.values(), more))
    )
    drafts = drafts_of([Match((a,), (b,)) for a, b in pairs.items()], source, target)
    made = {}
    rules = rules_in(Drafted(tuple(drafts)).text, Path("drafted.yaml"))
    taken = {name: spec for name, spec in source.items() if name in pairs}
    for move in assign(Path("a"), taken, rules).moves:
        made[move.sources[0]] = move.target.name
    assert made == pairs
    for rule in rules.rules:  # and they fit no other tensor, either way
        assert not any(rule.source.values(name) for name in extra)
        assert not any(rule.target.values(name) for name in more)
    return [(str(draft.keys["source"]), str(draft.keys["target"])) for draft in drafts]


def test_numbers_become_placeholders() -> None:
    pairs = {f"block_{i}/conv_{j}/w": f"blocks.{i}.conv{j}.weight" for i in range(3) for j in range(2)}
    assert lines(pairs) == [("block_{i}/conv_{j}/w", "blocks.{i}.conv{j}.weight")]


def test_an_offset_is_counted() -> None:
    assert lines({f"layer_{i + 1}/w": f"layers.{i}.w" for i in range(12)}) == [
        ("layer_{i+1}/w", "layers.{i}.w")
    ]
    assert lines({f"layer_{i}/w": f"layers.{i + 2}.w" for i in range(12)}) == [
        ("layer_{i-2}/w", "layers.{i}.w")
    ]


def test_padded_numbers() -> None:
    assert lines({f"block_{i:03}/w": f"block.{i}.w" for i in range(12)}) == [
        ("block_{i:03}/w", "block.{i}.w")
    ]


def test_a_rule_does_not_fit_a_tensor_that_is_another_rules() -> None:
    pairs = {f"layer_{i}/w": f"layers.{i}.w" for i in range(4)}
    assert lines(pairs, extra=("layer_9/w",)) != [("layer_{i}/w", "layers.{i}.w")]
    shifted = {f"block_{i}/w": f"features.{i + 1}.w" for i in range(1, 5)}
    assert lines(shifted, more=("features.1.w",)) == [("block_{i+1}/w", "features.{i+2}.w")]


def test_what_has_no_formula_is_written_out() -> None:
    assert lines({"conv1/w": "features.0.w", "conv2/w": "features.2.w", "conv3/w": "features.5.w"}) == [
        ("conv1/w", "features.0.w"),
        ("conv2/w", "features.2.w"),
        ("conv3/w", "features.5.w"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "a{b}/w",
        'quo"te',
        "back\\slash",
        "yes",
        "null",
        "n",
        "ключ/ядро",
        "a: b",
        "# no comment",
        "- x",
        "7",
        "1" * 40,
        "tab\there",
        "x" * 300,
    ],
)
def test_any_name_survives_the_file(name: str) -> None:
    assert lines({name: f"to/{name}"}) is not None


def test_lengths_of_merged_axes_are_given_where_they_are_needed() -> None:
    source = specs({f"a{i}": (8 * (i + 1), 6) for i in range(3)})
    target = specs({f"b{i}": (6, 2 * (i + 1), 4) for i in range(3)})
    matches = [
        Match((f"a{i}",), (f"b{i}",), Turn("(h d) c", "c h d", (("h", 2 * (i + 1)), ("d", 4), ("c", 6))))
        for i in range(3)
    ]
    (draft,) = drafts_of(matches, source, target)
    assert draft.keys["sizes"] == {"d": 4}  # the one that is the same in all of them
    made = assign(Path("a"), source, rules_in(Drafted((draft,)).text, Path("x.yaml"))).moves
    assert [move.target.shape for move in made] == [spec.shape for spec in target.values()]


@pytest.mark.parametrize("back", [False, True], ids=["", "back"])
@pytest.mark.parametrize("name", [*PORTS, *UNSEEN])
def test_the_file_makes_what_was_paired_in_both_directions(name: str, back: bool) -> None:
    port = {**PORTS, **UNSEEN}[name]()
    port = port.turned_round() if back else port
    source, target = specs_of(port.source), specs_of(port.target)
    structure = Structure(source, target)
    drafts = drafts_of(structure.matches, source, target)
    rules = rules_in(Drafted(tuple(drafts), questions=tuple(structure.questions)).text, Path("drafted.yaml"))
    used = {name: source[name] for match in structure.matches for name in match.sources}
    made = {name: target[name] for match in structure.matches for name in match.targets}
    for left, right, way in ((used, made, rules), (made, used, rules.reversed)):
        found = assign(Path("file"), left, way)
        assert found.faults == []
        assert {move.target.name: move.target.shape for move in found.moves} == {
            n: s.shape for n, s in right.items()
        }


def interleaved(parts: list[np.ndarray], heads: int) -> np.ndarray:
    """``(heads n dim)`` on the first axis."""
    apart = [one.reshape(heads, -1, *one.shape[1:]) for one in parts]
    return np.concatenate(apart, 1).reshape(-1, *parts[0].shape[1:])


def experts_of(turn: Callable[[np.ndarray], np.ndarray], axis: int, second: int) -> Arrays:
    """Two projections of each of five experts, of lengths 6 and ``second``, and the one that holds all."""
    one, other = ([random(6 if n else 7, 3, seed=10 * n + e) for e in range(5)] for n in (1, 0))
    other = [array[:second] for array in other]
    left = {f"l.{e}.{name}/w": turn(rows[e]) for name, rows in (("a", one), ("b", other)) for e in range(5)}
    whole = np.stack([np.concatenate(row) for row in zip(one, other, strict=True)], axis)
    return left, {"all": whole}


Arrays = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
Q, K, V = (random(12, 7, seed=n) for n in range(3))
FUSED: dict[str, Arrays] = {
    "heads": ({"q": Q, "k": K, "v": V}, {"qkv": interleaved([Q, K, V], 4)}),
    "heads, turned": ({"q": Q.T, "k": K.T, "v": V.T}, {"qkv": interleaved([Q, K, V], 4)}),
    "heads, on the last axis": ({"q": Q, "k": K, "v": V}, {"qkv": interleaved([Q, K, V], 4).T}),
    "heads of their own": (
        {name: one.T.reshape(7, 4, 3) for name, one in (("q", Q), ("k", K), ("v", V))},
        {"qkv": interleaved([Q, K, V], 4)},
    ),
    "keys and values": ({"k": K, "v": V}, {"kv": interleaved([K, V], 6)}),
    "biases": (
        {"q": Q[:, 0], "k": K[:, 0], "v": V[:, 0]},
        {"qkv": interleaved([Q[:, 0], K[:, 0], V[:, 0]], 2)},
    ),
    "experts": experts_of(lambda x: x, 0, 6),
    "experts, turned": experts_of(np.transpose, 0, 6),
    "experts, on the second axis": experts_of(np.transpose, 1, 6),
    "experts of two lengths": experts_of(lambda x: x, 0, 4),
    "experts of two lengths, turned": experts_of(np.transpose, 2, 4),
}  # fmt: skip


@pytest.mark.parametrize("back", [False, True], ids=["", "back"])
@pytest.mark.parametrize("name", FUSED)
def test_a_drafted_file_of_fused_tensors_converts_bit_for_bit(tmp_path: Path, name: str, back: bool) -> None:
    """Also the ones whose axes are taken apart by head; several blocks of them."""
    left, right = (
        {f"{b}.{n}": array + np.float32(b) for b in range(2) for n, array in side.items()}
        for side in FUSED[name]
    )
    if back:
        left, right = right, left
    matches = same_values(
        Read(left), Read(right), *(Values.of(Read(x), lambda _: None) for x in (left, right))
    )
    drafts = drafts_of(matches, specs_of(left), specs_of(right))
    text = Drafted(tuple(drafts)).text
    assert len(drafts) == 1 and {name for draft in drafts for name in draft.targets} == set(right), text
    for before, after, reverse in ((left, right, False), (right, left, True)):
        source = write(tmp_path / "a.safetensors", "safetensors", before)
        rules = rules_in(text, Path("drafted.yaml"), reverse=reverse)
        convert(source, tmp_path / "b.npz", "npz", rules)
        assert_same(held(tmp_path / "b.npz"), after)
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_question_is_above_its_first_rule_with_the_candidates() -> None:
    drafts = tuple(
        Draft({"source": f"x{n}", "target": f"y{n}"}, "ambiguous", (), 0, (f"y{n}",), (f"x{n}",))
        for n in range(2)
    )
    question = Question("which of these is which?", ("x0", "x1"), ("y0", "y1"))
    text = Drafted(drafts, (DraftIgnore("step", "global_step", "counts steps"),), (question,)).text
    assert text.splitlines()[2:6] == [
        "  # question: which of these is which?",
        "  #   of the source: x0, x1",
        "  #   of the target: y0, y1",
        "  #   when it is answered, delete 'sure: ambiguous'",
    ]
    assert [rule.sure for rule in rules_in(text, Path("x.yaml")).rules] == ["ambiguous"] * 2
