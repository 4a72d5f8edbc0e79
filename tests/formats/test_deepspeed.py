"""Steps of DeepSpeed's ZeRO, read into weights of full precision.

Most are put together by hand, by what DeepSpeed 0.19.8 saves; its own script, where it is installed, says
what is in them.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.formats.detect import open_reader, writer_for
from tests.support.damage import read_all
from tests.support.deepspeed_files import Step, TorchSave, listed, named
from tests.support.torch_files import hostile, number, text

SOURCE = np.random.default_rng(3)
GROUPS: list[dict[str, Any]] = [
    {
        "a.weight": SOURCE.standard_normal((3, 5)).astype("f4"),
        "a.bias": SOURCE.standard_normal(3).astype("f4"),
    },
    {
        "b.weight": SOURCE.standard_normal((2, 2, 3)).astype("f4"),
        "scale": np.array(2.5, "f4"),
        "one": np.array([7], "f4"),
    },
]
BUFFERS: dict[str, Any] = {"bn.mean": np.array([1.5, 2.5], "f2"), "bn.steps": np.array(3, "i8")}
FROZEN: dict[str, Any] = {"f.weight": SOURCE.standard_normal((3, 3)).astype("f2")}


def step(stage: int, ranks: int, **options: Any) -> Step:
    usual = {"buffers": BUFFERS, "frozen": FROZEN, "shared": {"tied": "b.weight"}}
    return Step(stage, ranks, GROUPS, **{**usual, **options})


def refusal(folder: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_all(open_reader(folder))
    return str(caught.value)


def expected() -> dict[str, Any]:
    trained = {name: array for group in GROUPS for name, array in group.items()}
    buffers = {"bn.mean": BUFFERS["bn.mean"].astype("f4"), "bn.steps": BUFFERS["bn.steps"]}
    return {**buffers, **FROZEN, **trained, "tied": trained["b.weight"]}


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("by", ["run", "step"])
def test_every_stage(tmp_path: Path, stage: int, ranks: int, by: str) -> None:
    made = step(stage, ranks, prefix="bf16_" * (stage == 2)).write(tmp_path)
    with open_reader(tmp_path if by == "run" else made) as reader:
        assert (reader.format, reader.path) == ("deepspeed", made)
        assert list(reader.specs) == list(expected())
        for name, array in expected().items():
            read = reader.read(name)
            assert (read.shape, read.dtype, read.tobytes()) == (array.shape, array.dtype, array.tobytes()), (
                name
            )
            assert reader.specs[name].shape == array.shape
            raw = reader.raw(name)
            assert raw is None or bytes(raw.data) == array.tobytes()
            assert reader.check(name)
            reader.release(name)
            assert reader.read(name).tobytes() == array.tobytes()
        assert reader.same == {"tied": "b.weight"}
        assert reader.overlapping == ["tied"]
        assert reader.extras["global_steps"] == "5"
        assert reader.also["optimizer"] == f"the state of {ranks} rank{'s' * (ranks > 1)}"
        assert reader.notes == [] and reader.left_out == {}
        reader.check_rest()


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("align", [2, 8])
def test_padding_of_the_groups(tmp_path: Path, lean: bool, align: int) -> None:
    """The padding is of a multiple of 2, or whatever else the optimizer aligns to."""
    made = step(2, 2, lean=lean, align=align)
    made.write(tmp_path)
    if not lean and align == 8:  # DeepSpeed's own script refuses these, and cannot tell them from damage
        assert "elements, its parameters" in refusal(tmp_path)
        return
    with open_reader(tmp_path) as reader:
        assert reader.read("one").tolist() == [7]


def test_a_tensor_in_one_run_is_a_view(tmp_path: Path) -> None:
    step(3, 1).write(tmp_path)
    with open_reader(tmp_path) as reader:
        assert reader.raw("a.weight") is not None
        assert not reader.read("a.weight").flags.writeable
        assert reader.raw("bn.mean") is None, "widened"


def test_what_is_only_in_the_model_is_kept(tmp_path: Path) -> None:
    """Stage 1 keeps frozen weights nowhere else; DeepSpeed's own script loses them."""
    made = step(1, 2, other={"x.weight": np.ones(3, "f2")}, model={"frozen_param_shapes": b"N"})
    made.write(tmp_path)
    with open_reader(tmp_path) as reader:
        assert reader.specs["x.weight"].dtype.name == reader.specs["f.weight"].dtype.name == "float16"
        assert reader.notes == [
            "2 tensors are not the optimizer's: taken as the model has it: f.weight, x.weight"
        ]


def test_the_optimizer_for_bfloat16_says_no_stage(tmp_path: Path) -> None:
    made = step(1, 2, state={"zero_stage": b"N"})
    made.write(tmp_path)
    with open_reader(tmp_path) as reader:
        assert reader.read("one").tolist() == [7]


def test_several_steps(tmp_path: Path) -> None:
    step(2, 1).write(tmp_path, "global_step1")
    newest = step(2, 1).write(tmp_path, "global_step2")
    with open_reader(tmp_path) as reader:
        assert reader.path == newest
    (tmp_path / "latest").unlink()
    with pytest.raises(UsageError, match="holds 2 checkpoints"):
        open_reader(tmp_path)


def test_it_is_not_written() -> None:
    with pytest.raises(UsageError, match="read, not written: they are the state of a training run"):
        writer_for("deepspeed")(Path("x"), [], {})


def _missing(rank: str, kind: str) -> Any:
    return lambda folder: (folder / f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt").unlink()


def _add(name: str) -> Any:
    return lambda folder: (folder / name).write_bytes((folder / "mp_rank_00_model_states.pt").read_bytes())


def _truncate(folder: Path) -> None:
    path = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    path.write_bytes(path.read_bytes()[:-20])


FLAT = "single_partition_of_fp32_groups"


def flats(*shapes: tuple[int, ...], dtype: str = "float32") -> dict[str, bytes]:
    """The optimizer's list, as of one that kept something else."""
    file = TorchSave()
    return {FLAT: listed([file.tensor(np.zeros(shape, "f4"), dtype=dtype) for shape in shapes])}


NO_SHAPES = {"param_shapes": listed([named({}), named({})])}
REFUSED: dict[str, tuple[Step, Any, str]] = {
    "a rank of the optimizer": (step(2, 3), _missing("1", "optim"), "lacks the optim states of rank 1"),
    "the last rank": (step(2, 3), _missing("2", "optim"), "holds 2 ranks of 3"),
    "a rank of the model": (step(3, 3), _missing("2", "model"), "holds 2 ranks of 3"),
    "model parallel": (step(2, 1), _add("mp_rank_01_model_states.pt"), "2 model-parallel ranks share"),
    "pipeline": (step(2, 1), _add("layer_00-model_states.pt"), "the parts of a pipeline or of experts"),
    "experts": (step(2, 1), _add("expp_rank_0_mp_rank_00_optim_states.pt"), "a pipeline or of experts"),
    "twice": (step(2, 1), _add("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), "rank 0 is there twice"),
    "truncated": (step(2, 2), _truncate, "truncated"),
    "stage of the future": (step(2, 1, state={"zero_stage": number(4)}), None, "is of stage 4 of ZeRO"),
    "AutoEP": (step(2, 1, model={"ds_autoep_layers": b"]"}), None, "experts that ranks share"),
    "other shapes": (
        step(2, 2, state={}, model={"param_shapes": listed([named({}), named({})])}),
        None,
        "its parameters 0",
    ),
    "no groups": (step(2, 2, model={"param_shapes": b"N"}), None, "expected a table of shapes, found None"),
    "fewer groups": (step(2, 2, model={"param_shapes": listed([named({})])}), None, "1 group of parameters"),
    "a huge shape": (
        step(2, 1, model={"param_shapes": listed([named({"w": b"(" + number(1 << 40) + b"t"}), named({})])}),
        None,
        "at least 1099511627776 are needed",
    ),
    "a negative size": (
        step(2, 1, model={"param_shapes": listed([named({"w": b"(" + number(-1) + b"t"}), named({})])}),
        None,
        "a size is -1",
    ),
    "not flat": (step(2, 1, state=flats((2, 2), (1,))), None, "expected a flat tensor, found tensor"),
    "not float32": (
        step(2, 1, state=flats((2,), (1,), dtype="int64")),
        None,
        "a flat tensor of float32",
    ),
    "no flat weights": (step(3, 1, state={"fp32_flat_groups": b"N"}), None, "has no fp32_flat_groups"),
    "no state": (step(2, 1, state={"partition_count": text("2")}), None, "holds 1 rank of 0"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused(tmp_path: Path, fault: str) -> None:
    made, damage, wanted = REFUSED[fault]
    folder = made.write(tmp_path)
    if damage:
        damage(folder)
    assert wanted in refusal(folder)


def test_damage_is_found_before_it_is_used(tmp_path: Path) -> None:
    folder = step(3, 2).write(tmp_path)
    path = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    part = GROUPS[0]["a.weight"].reshape(-1)[8:].tobytes()
    raw = path.read_bytes()
    assert part in raw
    path.write_bytes(raw.replace(part, bytes(len(part))))
    with open_reader(folder) as reader, pytest.raises(FormatError, match=r"rank_1.*'a.weight'.*CRC-32"):
        reader.read("a.weight")


def test_nothing_in_it_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    made = step(2, 1, state={"evil": hostile(canary, "os")["os.system"]})
    with open_reader(made.write(tmp_path / "x")) as reader:
        read_all(reader)
        assert any("would run os.system" in note for note in reader.notes)
    assert not canary.exists()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """DeepSpeed's own, and classes that its files name."""
    pytest.importorskip("torch")
    return pytest.importorskip("deepspeed.utils.zero_to_fp32")


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (2, 3), (3, 1), (3, 2), (3, 3)])
def test_as_its_own_script_reads_it(script: Any, tmp_path: Path, stage: int, ranks: int) -> None:
    step(stage, ranks).write(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        theirs = script.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))
    with open_reader(tmp_path) as ours:
        assert theirs.keys() == ours.specs.keys()
        for name, tensor in theirs.items():
            wanted = tensor.detach().numpy()
            assert ours.read(name).dtype == wanted.dtype
            assert ours.read(name).tobytes() == np.ascontiguousarray(wanted).tobytes(), name
