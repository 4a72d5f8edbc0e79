"""Finding the state dict in what training code saves, telling copies apart, asking where nothing tells."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import CkptkitError, FormatError, NotFoundError, UsageError
from ckptkit.formats.pickle_machine import Inert
from ckptkit.formats.torch_pickle import StorageRef, TensorRef, UnsupportedTensor
from ckptkit.formats.torch_state_dicts import StateDict, find_state_dict

FILE = Path("one.pth")


def tensor() -> TensorRef:
    return TensorRef(StorageRef("0", "float32", 1), "float32", 0, (1,), (1,))


def weights(*names: str) -> dict[object, object]:
    return {name: tensor() for name in names or ("a.weight", "a.bias", "b.weight")}


def averaged(counter: str) -> dict[object, object]:
    """The state dict of an averaged model."""
    return {counter: tensor(), **{f"module.{name}": value for name, value in weights().items()}}


ARRAY = Inert(
    "numpy._core.multiarray._reconstruct", (), (1, (2,), Inert("numpy.dtype", ("f4",)), False, bytes(8))
)
OPTIMIZER = {
    "state": {0: {"exp_avg": tensor(), "exp_avg_sq": tensor()}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}


def find(root: object, **asked: Any) -> StateDict:
    return find_state_dict(FILE, root, **asked)


ONLY: Mapping[str, tuple[object, str]] = {
    "the file itself": (weights(), ""),
    "two levels deep": ({"net": {"state_dict": weights()}}, "net.state_dict"),
    "checkpoint and model": ({"checkpoint": {"model": weights(), "epoch": 3}}, "checkpoint.model"),
    "detectron2": ({"model": weights(), "iteration": 9, "optimizer": OPTIMIZER}, "model"),
    "Lightning": (
        {
            "state_dict": weights(),
            "optimizer_states": [OPTIMIZER],
            "callbacks": {"EMA": {"ema": weights()}},
            "hyper_parameters": {"lr": 0.1},
        },
        "state_dict",
    ),
    "fairseq": (
        {"model": weights(), "last_optimizer_state": OPTIMIZER, "extra_state": {"meters": {}}},
        "model",
    ),
    "optimizer by its shape alone": ({"weights": weights(), "adam": OPTIMIZER}, "weights"),
    "optimizer by parameters' names": ({"net": weights(), "opt_g": {"exp_avg": weights()}}, "net"),
    "tensors beside the state dict": (
        {"params": weights(), "loss": tensor(), "torch_rng_state": tensor()},
        "params",
    ),
    "a table inside the state dict": (
        {**weights(), "layer._extra_state": {"amax": tensor(), "scale": tensor()}},
        "",
    ),
    "in a list": ({"models": [{"w": tensor()}]}, "models.0"),
    "a loss with buffers": ({"model": weights(), "criterion": {"empty_weight": tensor()}}, "model"),
    "tensors that cannot be read": ({"model": {"w": UnsupportedTensor("a sparse tensor")}}, "model"),
    "numpy arrays": ({"model": {"w": ARRAY}, "__author__": "x"}, "model"),
    "arrays beside tensors are constants": (
        {"state_dict": weights(), "meta": {"mean": ARRAY, "std": ARRAY}},
        "state_dict",
    ),
    "an unknown name": ({"encoder": weights(), "epoch": 3}, "encoder"),
    "averages alone": ({"model_ema": weights(), "model": Inert("a.Model", ())}, "model_ema"),
}


@pytest.mark.parametrize("case", ONLY)
def test_the_only_state_dict_is_found(case: str) -> None:
    root, name = ONLY[case]
    for weights_asked in (None, "auto", "ema"):
        found = find(root, weights=weights_asked)
        assert (found.name, found.copies) == (name, {})


ASKS: Mapping[str, tuple[dict[object, object], list[str]]] = {
    "two models": (
        {"generator": weights("g"), "critic": weights("c")},
        ["generator", "critic"],
    ),
    "student and teacher": (
        {"student": weights(), "teacher": weights()},
        ["student", "teacher"],
    ),
    "another model of the same tensors": (
        {"model": weights(), "best_model": weights()},
        ["model", "best_model"],
    ),
    "two nets of which none is usual": ({"net": weights("a"), "params": weights("b")}, ["net", "params"]),
    "parts of a model": (
        {"model": {"backbone": weights("a"), "head": weights("b")}},
        ["model.backbone", "model.head"],
    ),
}


@pytest.mark.parametrize("asked", [None, "auto", "ema", "raw"])
@pytest.mark.parametrize("case", ASKS)
def test_several_are_asked_for_with_the_option(case: str, asked: Any) -> None:
    root, names = ASKS[case]
    with pytest.raises(FormatError) as caught:
        find(root, weights=asked)
    assert caught.value.message == f"one.pth holds {len(names)} state dicts: {', '.join(names)}"
    assert caught.value.hint == f"choose one with --state-dict {names[0]}"
    for name in names:
        assert find(root, wanted=name).name == name


PAIRS = [
    ("model_state_dict", "ema_model_state_dict"),
    ("params", "params_ema"),
    ("model", "ema"),
    ("net", "net_ema"),
    ("model_state", "ema_state"),
    ("state_dict", "ema_state_dict"),
    ("state_dict", "swa_state_dict"),
    ("model", "averaged_model"),
    ("netG", "netG_ema"),
    ("model", "modelEMA"),
    ("trainer.model", "trainer.ema"),
    ("student", "student_ema"),
    ("student", "ema"),
]


def placed(**at: object) -> dict[object, object]:
    root: dict[object, object] = {}
    for path, value in at.items():
        *outer, last = path.split(".")
        table = root
        for key in outer:
            table = table.setdefault(key, {})  # type: ignore[assignment]
        table[last] = value
    return root


@pytest.mark.parametrize(("raw", "ema"), PAIRS)
@pytest.mark.parametrize("order", [1, -1])
def test_pairs_are_copies(raw: str, ema: str, order: int) -> None:
    """Whichever comes first; where nobody says which, it is asked for, with both ways to say it."""
    root = placed(**dict([(raw, weights()), (ema, averaged("n_averaged"))][::order]))
    assert find(root, weights="raw").name == raw
    assert find(root, weights="ema").name == ema
    assert find(root, weights="ema").copies == {"raw": raw, "ema": ema}
    assert find(root, wanted=ema).copy == "ema"
    with pytest.raises(FormatError, match=r"holds 2 state dicts: .*--state-dict .*, or --weights ema or raw"):
        find(root, weights="auto")


@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_the_averages_of_timm_are_taken_unasked(plain: str) -> None:
    """Its published figures are those of the averages."""
    root = {f"{plain}_ema": weights(), plain: weights()}
    assert find(root, weights="auto").name == f"{plain}_ema"
    assert (find(root).name, find(root).copy) == (plain, "raw")
    assert find(root).names == (plain, f"{plain}_ema")


SWAPPED: Mapping[str, tuple[dict[object, object], str]] = {
    "mmengine by its counter": (
        {"meta": {}, "state_dict": weights(), "ema_state_dict": averaged("steps")},
        "ema_state_dict",
    ),
    "mmengine by its version": (
        {"meta": {"mmengine_version": "0.10"}, "state_dict": weights(), "ema_state_dict": weights()},
        "ema_state_dict",
    ),
    "Lightning's WeightAveraging": (
        {
            "state_dict": weights(),
            "current_model_state": weights(),
            "averaging_state": {"n_averaged": tensor()},
        },
        "current_model_state",
    ),
}


@pytest.mark.parametrize("case", SWAPPED)
def test_hooks_that_swap_the_copies(case: str) -> None:
    """What they save as ``state_dict`` are the averages, so raw weights are never read there.

    Sources: before_save_checkpoint in mmengine/hooks/ema_hook.py, on_save_checkpoint in
    lightning/pytorch/callbacks/weight_averaging.py.
    """
    root, raw = SWAPPED[case]
    assert find(root, weights="raw").name == raw
    for asked in ("auto", "ema", None):
        found = find(root, weights=asked)
        assert (found.name, found.copy) == ("state_dict", "ema")


def test_an_ema_state_dict_without_the_hooks_marks_holds_averages() -> None:
    root = {"state_dict": weights(), "ema_state_dict": averaged("n_averaged"), "meta": {"epoch": 3}}
    assert find(root, weights="raw").name == "state_dict"


@pytest.mark.parametrize("averages", ["ema", "model_ema", "ema_state_dict", "swa_model"])
def test_averages_are_never_taken_for_raw_weights(averages: str) -> None:
    with pytest.raises(UsageError, match=rf"one\.pth holds moving averages \(EMA\) only \({averages}\)"):
        find({averages: weights()}, weights="raw")


def test_copies_of_one_model_among_several() -> None:
    root = {"generator": weights("g"), "generator_ema": weights("g"), "critic": weights("c")}
    assert find(root, weights="ema").name == "generator_ema"
    for asked in ("auto", "raw", None):
        with pytest.raises(FormatError, match="holds 3 state dicts: generator, generator_ema, critic"):
            find(root, weights=asked)


PATHS = [
    ("", {"w": tensor()}, ""),
    ("model.state_dict", {"model": {"state_dict": weights()}}, "model.state_dict"),
    ("model", {"model": {"state_dict": weights()}, "other": weights()}, "model.state_dict"),
    ("a.b", {"a.b": weights("x"), "a": {"b": weights("y")}}, "a.b"),
    ("a.b.c", {"a": {"b.c": weights("x")}, "a.b": {"c": weights("y")}}, "a.b.c"),
    ("optimizer.state.0", {"model": weights(), "optimizer": OPTIMIZER}, "optimizer.state.0"),
    ("models.1", {"models": [weights("a"), weights("b")]}, "models.1"),
]


@pytest.mark.parametrize(("wanted", "root", "name"), PATHS)
def test_paths_of_keys(wanted: str, root: dict[object, object], name: str) -> None:
    assert find(root, wanted=wanted).name == name


def test_the_longest_key_that_fits_is_meant() -> None:
    assert set(find(PATHS[3][1], wanted="a.b").table) == {"x"}
    assert set(find(PATHS[4][1], wanted="a.b.c").table) == {"y"}


WRONG: list[tuple[str, dict[object, object], type[CkptkitError], str]] = [
    ("x", {"model": weights()}, NotFoundError, "no state dict 'x', it has 'model'; leave --state-dict out"),
    ("x", weights(), NotFoundError, "no state dict 'x', it has one at the top; leave --state-dict out"),
    (
        "epoch",
        {"a": weights("a"), "b": weights("b"), "epoch": 3},
        NotFoundError,
        "no state dict 'epoch', it has 'a', 'b'; choose one with --state-dict a",
    ),
    ("m", {"m": {"a": weights("a"), "b": weights("b")}}, FormatError, "holds 2 state dicts: m.a, m.b"),
]


@pytest.mark.parametrize(("wanted", "root", "kind", "said"), WRONG)
def test_wrong_choices(wanted: str, root: dict[object, object], kind: Any, said: str) -> None:
    with pytest.raises(kind) as caught:
        find(root, wanted=wanted)
    assert said in str(caught.value)


def test_names_are_quoted_so_that_the_hint_can_be_typed() -> None:
    with pytest.raises(FormatError) as caught:
        find({"my model": weights("a"), "b": weights("b")})
    assert str(caught.value).endswith("--state-dict 'my model'")


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ({"epoch": 3}, r"one\.pth holds no state dict, only \{epoch: 3\}"),
        (OPTIMIZER, r"one\.pth holds no state dict, only "),
        (Inert("a.Model", ()), r"one\.pth is a whole pickled object \("),
        ([1, 2], r"one\.pth holds no state dict, only \[1, 2\]"),
    ],
)
def test_files_without(root: object, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        find(root)


def test_tables_that_hold_each_other_end() -> None:
    loop: dict[object, object] = {}
    loop["self"] = [loop]
    assert find({"loop": loop, "model": weights()}).name == "model"
    deep: dict[object, object] = weights()
    for _ in range(100_000):
        deep = {"d": deep}
    with pytest.raises(FormatError, match="no state dict"):
        find(deep)


def test_many_tables_are_refused_quickly() -> None:
    many: dict[object, object] = {f"ema_{k}" if k % 2 else f"m_{k}": weights() for k in range(100_000)}
    started = time.process_time()
    with pytest.raises(FormatError, match="100000 tables of tensors, more than 1000"):
        find(many)
    shared = weights(*map(str, range(10_000)))
    assert find({f"k{k}": shared for k in range(100_000)}).name == "k0"
    assert time.process_time() - started < 10
