"""Checkpoints of torch.distributed (DCP), read without torch."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import FormatError
from ckptkit.formats.detect import open_reader
from tests.support.damage import no_maps, read_all
from tests.support.dcp_files import Chunk, Dcp, path, saved, saved_array
from tests.support.torch_files import hostile, legacy, number, storage, tensor, text, whole

W = np.arange(24, dtype="f4").reshape(4, 6)
HALVES = [(slice(0, 2), slice(0, 6)), (slice(2, 4), slice(0, 6))]
GRID = [(slice(0, 1), slice(0, 4)), (slice(0, 1), slice(4, 6)), (slice(1, 4), slice(0, 6))]


def values(folder: Path, **options: Any) -> dict[str, Any]:
    with open_reader(folder, **options) as reader:
        return {name: reader.read(name).copy() for name in reader.specs}


def refusal(folder: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_all(open_reader(folder))
    return str(caught.value)


@pytest.fixture
def simple() -> Dcp:
    made = Dcp()
    made.add("w", W, HALVES, files=2)
    made.add("b", W[0])
    made.objects["step"] = saved(whole(number(7)))
    return made


# -- what is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["folder", "metadata", "a part", "the folder above"])
def test_a_checkpoint_of_two_ranks(simple: Dcp, tmp_path: Path, by: str) -> None:
    folder = simple.write(tmp_path / "run" / "step-3")
    ways = {"metadata": folder / ".metadata", "a part": folder / "__1_0.distcp", "folder": folder}
    with open_reader(ways.get(by, folder.parent)) as reader:
        assert (reader.format, reader.path, list(reader.specs)) == ("dcp", folder, ["w", "b"])
        assert np.array_equal(reader.read("w"), W)
        assert np.array_equal(reader.read("b"), W[0])
        assert not reader.read("w").flags.writeable
        assert reader.raw("w") is None
        assert bytes(reader.raw("b").data) == W[0].tobytes()  # type: ignore[union-attr]
        assert reader.check("w") and reader.check("b")
        reader.check_rest()
        reader.release("w")
        assert np.array_equal(reader.read("w"), W)
        assert reader.also == {"step": "7"}
        assert reader.notes == ["step is not a tensor (7): skipped"]
        assert not reader.left_out


@pytest.mark.parametrize("cuts", [HALVES, GRID, [GRID[2], GRID[0], GRID[1]]], ids=["rows", "grid", "turned"])
def test_chunks_fill_a_tensor(tmp_path: Path, cuts: Any) -> None:
    made = Dcp()
    made.add("w", W, cuts, files=3)
    assert np.array_equal(values(made.write(tmp_path))["w"], W)


def test_one_chunk_is_handed_out_as_it_is_in_the_file(tmp_path: Path) -> None:
    made = Dcp()
    made.add("w", W)
    made.add("empty", np.zeros((0, 3), "f4"))
    made.add("scalar", np.array(2.5, "f4"))
    with open_reader(made.write(tmp_path)) as reader:
        assert reader.read("w").base is not None, "a view"
        assert reader.read("empty").shape == (0, 3)
        assert reader.read("scalar")[()] == 2.5
        assert reader.raw("empty").data.nbytes == 0  # type: ignore[union-attr]
    assert values(tmp_path)["w"].tobytes() == W.tobytes()


def test_a_chunk_keeps_its_strides(tmp_path: Path) -> None:
    made = Dcp()
    content = saved(whole(tensor(store=storage(count=24), shape=(6, 4), strides=(1, 6))), W.tobytes())
    made.tensors["t"] = ((6, 4), [Chunk((0, 0), (6, 4), content)])
    assert np.array_equal(values(made.write(tmp_path))["t"], W.T)


def test_a_chunk_may_be_a_legacy_stream(tmp_path: Path) -> None:
    made = Dcp()
    made.tensors["t"] = ((2,), [Chunk((0,), (2,), legacy(whole(tensor())))])
    assert values(made.write(tmp_path))["t"].tolist() == [1.5, -2.0]


def test_ranks_without_elements_have_no_part_in_it(tmp_path: Path) -> None:
    made = Dcp()
    made.add("w", W)
    empty = saved_array(np.zeros((0, 6), "f4"))
    made.tensors["w"][1].append(Chunk((4, 0), (0, 6), empty, "__1_0.distcp"))
    with open_reader(made.write(tmp_path)) as reader:
        assert np.array_equal(reader.read("w"), W)
        assert reader.notes == []


def test_bfloat16_and_bool(tmp_path: Path) -> None:
    made = Dcp(dtype="bool")
    made.add("b", np.array([True, False]))
    assert values(made.write(tmp_path))["b"].tolist() == [True, False]
    made.tensors["b"][1][0].content = saved_array(np.array([1, 2], "u1"), "bool")
    assert "holds byte 0x02" in refusal(made.write(tmp_path))


def test_keys_that_the_planner_flattened(tmp_path: Path) -> None:
    made = Dcp(paths={"model.a.w": path("model", "a.w"), "optim.a.w.exp_avg": path("optim", "a.w", "exp_avg"),
                      "optim.lr": path("optim", "lr"), "epoch": path("epoch")})  # fmt: skip
    made.add("model.a.w", W)
    made.add("optim.a.w.exp_avg", W + 1)
    made.objects["optim.lr"] = saved(whole(b"G" + b"\x3f\xe0" + bytes(6)))
    made.objects["epoch"] = saved(whole(number(3)))
    with open_reader(made.write(tmp_path)) as reader:
        assert (reader.state_dict, list(reader.specs)) == ("model", ["a.w"])
        assert reader.also == {"optim": "table of 2 values", "epoch": "3"}
        assert reader.extras["optim.lr"] == "0.5"
    assert list(values(tmp_path, state_dict="optim.a.w")) == ["exp_avg"]


def test_flat_names_of_an_optimizer(tmp_path: Path) -> None:
    made = Dcp()
    names = [
        *("layers.0.w", "optimizer.state.layers.0.w.exp_avg", "optim.0.step", "state.layers.0.w.exp_avg_sq"),
        *("optimal.w", "optimizer_states.0.x"),
    ]
    for name in names:
        made.add(name, W)
    with open_reader(made.write(tmp_path)) as reader:
        assert list(reader.specs) == names
        assert set(reader.optimizer) == {*names} - {"layers.0.w", "optimal.w"}


def test_the_prefix_of_a_wrapper_and_averages(tmp_path: Path) -> None:
    made = Dcp(
        paths={
            "model.module.w": path("model", "module.w"),
            "model_ema.module.w": path("model_ema", "module.w"),
        }
    )
    made.add("model.module.w", W)
    made.add("model_ema.module.w", W + 1)
    made.write(tmp_path)
    assert np.array_equal(values(tmp_path, weights="raw")["w"], W)
    assert np.array_equal(values(tmp_path, weights="ema")["w"], W + 1)
    assert list(values(tmp_path, weights="raw", as_saved=True)) == ["module.w"]


def test_classes_that_moved_between_versions(simple: Dcp, tmp_path: Path) -> None:
    """Properties were those of sharded tensors before torch 2.3; earlier ones kept no version."""
    simple.properties_module = "torch.distributed._shard.sharded_tensor.metadata"
    simple.version = b"N"
    assert np.array_equal(values(simple.write(tmp_path))["w"], W)


def test_an_object_that_holds_tensors_is_left_out_by_name(simple: Dcp, tmp_path: Path) -> None:
    simple.objects["pair"] = saved(whole(b"(" + tensor() + tensor() + b"t"), W[0, :2].tobytes())
    with open_reader(simple.write(tmp_path)) as reader:
        assert list(reader.left_out) == ["pair"]
        assert "saved as an object" in reader.left_out["pair"]


def test_unknown_element_types_are_left_out(tmp_path: Path) -> None:
    made = Dcp()
    made.add("w", W)
    made.write(tmp_path)
    raw = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(raw.replace(b"ctorch\nfloat32\n", b"ctorch\nfloat99\n"))
    with open_reader(tmp_path) as reader:
        assert reader.left_out == {"w": "elements of type float99, which is not known here"}


def test_what_else_is_in_the_folder_is_noted(simple: Dcp, tmp_path: Path) -> None:
    folder = simple.write(tmp_path)
    (folder / "__7_0.distcp").write_bytes(b"PK")
    with (folder / "__1_0.distcp").open("ab") as file:
        file.write(b"more")
    with open_reader(folder) as reader:
        assert "4 bytes of its files belong to nothing" in reader.notes
        assert "__7_0.distcp: not named by .metadata, left from another save" in reader.notes


def test_without_maps(simple: Dcp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simple.write(tmp_path)
    monkeypatch.setattr("mmap.mmap", no_maps)
    assert np.array_equal(values(tmp_path)["w"], W)


# -- what is refused -----------------------------------------------------------------------------------------


def _gap(made: Dcp) -> None:
    del made.tensors["w"][1][1]


def _overlap(made: Dcp) -> None:
    made.tensors["w"][1].append(Chunk((1, 0), (2, 6), saved_array(W[1:3])))


def _overlap_and_gap(made: Dcp) -> None:
    made.tensors["w"][1][1] = Chunk((1, 0), (2, 6), saved_array(W[1:3]))


def _outside(made: Dcp) -> None:
    made.tensors["w"][1][1] = Chunk((3, 0), (2, 6), saved_array(W[:2]))


def _no_chunks(made: Dcp) -> None:
    made.tensors["w"][1].clear()


def _axes(made: Dcp) -> None:
    made.tensors["w"][1][0].sizes = (2,)


def _many_axes(made: Dcp) -> None:
    boxes = [Chunk((at,) * 8, (1,) * 8, saved_array(W[:1, :1].reshape((1,) * 8))) for at in (0, 1)]
    made.tensors["w"] = ((2,) * 8, boxes)


def _other_shape(made: Dcp) -> None:
    made.tensors["w"][1][1].content = saved_array(W[:2].T)


def _other_type(made: Dcp) -> None:
    made.tensors["w"][1][1].content = saved_array(W[:2].astype("i8"), "int64")


def _not_a_tensor(made: Dcp) -> None:
    made.tensors["w"][1][1].content = saved(whole(number(3)))


def _not_saved_by_torch(made: Dcp) -> None:
    made.tensors["w"][1][1].content = b"\x10\0\0\0\0\0\0\0{}"


def _packed(made: Dcp) -> None:
    made.info = {"transform_descriptors": b"](" + text("stream.zstd/1") + b"e"}


def _elsewhere(name: str) -> Callable[[Dcp], None]:
    return lambda made: setattr(made, "info", {"relative_path": text(name)})


def _shared(made: Dcp) -> None:
    made.info = {"offset": number(0), "relative_path": text("__0_0.distcp")}


def _far(made: Dcp) -> None:
    made.info = {"length": number(1 << 40)}


def _negative(made: Dcp) -> None:
    made.info = {"offset": number(-1)}


def _renamed(made: Dcp) -> None:
    made.paths = {"w": path("other")}


def _value_and_table(made: Dcp) -> None:
    made.add("w.x", W)
    made.paths = {"w.x": path("w", "x")}


def _version(made: Dcp) -> None:
    made.version = text("2.1.0")


def _class(made: Dcp) -> None:
    made.index_module = "evil.metadata"


def _expansion(made: Dcp) -> None:
    content = saved(whole(tensor(store=storage(count=1), shape=(1 << 30,), strides=(0,))), bytes(4))
    made.tensors["w"] = ((1 << 30,), [Chunk((0,), (1 << 30,), content)])


REFUSED: dict[str, tuple[Callable[[Dcp], None], str]] = {
    "gap": (_gap, "w: its 1 chunk leave a gap"),
    "overlap": (_overlap, "w: its 3 chunks overlap"),
    "overlap and gap": (_overlap_and_gap, "w: its 2 chunks overlap and leave a gap"),
    "outside": (_outside, "a chunk of [2, 6] at [3, 0] is outside of [4, 6]"),
    "no chunks": (_no_chunks, "w: it has no chunks"),
    "axes": (_axes, "a chunk of 1 axis of a tensor of 2"),
    "cut along many axes": (_many_axes, "cut along 8 axes"),
    "other shape": (_other_shape, "tensor 'w': expected float32 [2, 6], found tensor of float32 [6, 2]"),
    "other type": (_other_type, "expected float32 [2, 6], found tensor of int64"),
    "not a tensor": (_not_a_tensor, "expected float32 [2, 6], found 3"),
    "not saved by torch": (_not_saved_by_torch, "tensor 'w': not a PyTorch checkpoint"),
    "packed": (_packed, "holds data packed by [stream.zstd/1]"),
    "a file above": (_elsewhere("../x.distcp"), "which is not a file name"),
    "an absolute file": (_elsewhere("/etc/passwd"), "which is not a file name"),
    "a file of Windows": (_elsewhere("C:x"), "which is not a file name"),
    "a long file name": (_elsewhere("x" * 300), "which is not a file name"),
    "the metadata": (_elsewhere(".metadata"), "which is not a file name"),
    "a missing file": (_elsewhere("__9_0.distcp"), "its file __9_0.distcp is missing"),
    "shared bytes": (_shared, "two tensors or values share bytes of it"),
    "too long": (_far, "and .metadata places data up to"),
    "negative": (_negative, "an offset in a file is -1"),
    "another name": (_renamed, "w is to be loaded as (other)"),
    "value and table": (_value_and_table, "w.x is inside of a value"),
    "future version": (_version, "is version 2.1.0 of torch.distributed.checkpoint, not 1.0.0"),
    "classes of others": (_class, "expected MetadataIndex of torch.distributed.checkpoint"),
    "expansion": (_expansion, "claim 4294967320 bytes"),
}  # fmt: skip


def test_a_checkpoint_serialized_as_safetensors_says_so(simple: Dcp, tmp_path: Path) -> None:
    """torch writes offset 0 for every tensor then, and does not load it itself."""
    _shared(simple)
    folder = simple.write(tmp_path)
    raw = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes((2).to_bytes(8, "little") + b"{}" + raw)
    assert "is a safetensors file in a DCP checkpoint; save it with" in refusal(folder)


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused(simple: Dcp, tmp_path: Path, fault: str) -> None:
    change, expected = REFUSED[fault]
    change(simple)
    assert expected in refusal(simple.write(tmp_path))


def test_damage_of_a_chunk_is_found_before_it_is_used(simple: Dcp, tmp_path: Path) -> None:
    folder = simple.write(tmp_path)
    raw = (folder / "__1_0.distcp").read_bytes()
    (folder / "__1_0.distcp").write_bytes(raw.replace(W[3].tobytes(), W[2].tobytes()))
    with open_reader(folder) as reader, pytest.raises(FormatError, match=r"__1_0.distcp.*'w'.*CRC-32"):
        reader.read("w")
    (folder / "__1_0.distcp").write_bytes(raw[:-1])
    assert "it is probably truncated" in refusal(folder)


def test_damage_of_what_is_not_the_model(tmp_path: Path) -> None:
    made = Dcp(paths={"model.w": path("model", "w"), "optim.m": path("optim", "m")})
    made.add("model.w", W)
    made.add("optim.m", W + 40)
    folder = made.write(tmp_path)
    raw = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes(raw.replace((W + 40)[3].tobytes(), W[2].tobytes()))
    with open_reader(folder) as reader:
        assert np.array_equal(reader.read("w"), W)
        with pytest.raises(FormatError, match="CRC-32"):
            reader.check_rest()


def test_a_damaged_value_beside_the_model_is_listed_as_such(tmp_path: Path) -> None:
    made = Dcp(paths={"model.w": path("model", "w"), "epoch": path("epoch")})
    made.add("model.w", W)
    made.objects["epoch"] = saved(whole(number(3)))[:-5]
    with open_reader(made.write(tmp_path)) as reader:
        assert reader.also["epoch"].startswith("damaged (a value: a zip archive without its end")
        with pytest.raises(FormatError, match="without its end"):
            reader.check_rest()


@pytest.mark.parametrize("where", ["metadata", "a value", "a chunk"])
def test_nothing_in_it_runs(simple: Dcp, tmp_path: Path, where: str) -> None:
    canary = tmp_path / "canary"
    evil = hostile(canary, "os")["os.system"]
    if where == "metadata":
        simple.extra = evil
    elif where == "a value":
        simple.objects["x"] = saved(whole(evil))
    else:
        simple.tensors["w"][1][1].content = saved(whole(evil))
    folder = simple.write(tmp_path / "x")
    if where == "a chunk":
        assert "would run os.system" in refusal(folder) or "expected float32" in refusal(folder)
    else:
        with open_reader(folder) as reader:
            read_all(reader)
            assert any("is a pickle that would run os.system" in note for note in reader.notes)
    assert not canary.exists()


def test_parts_without_their_metadata(simple: Dcp, tmp_path: Path) -> None:
    folder = simple.write(tmp_path)
    (folder / ".metadata").write_bytes(b"\x80\x02}.")
    assert "is a torch.distributed checkpoint (DCP) whose .metadata is damaged" in refusal(folder)
    (folder / ".metadata").unlink()
    for opened in (folder, folder / "__0_0.distcp"):
        assert "is a torch.distributed checkpoint (DCP) without its .metadata" in refusal(opened)
    (folder / "__0.metadata").write_bytes(b"\x80")
    assert "that each rank saved by itself" in refusal(folder)


def test_a_million_corners_take_no_second(tmp_path: Path) -> None:
    """As many chunks as a large checkpoint has of one tensor: compared in linear time."""
    from ckptkit.formats.dcp import Chunk as Box
    from ckptkit.formats.dcp import Place, _require_whole

    boxes = [Box((at, 0), (1, 4), Place("x", at, 1)) for at in range(20_000)]
    _require_whole((20_000, 4), boxes)
    with pytest.raises(ValueError, match="leave a gap"):
        _require_whole((20_000, 4), boxes[1:])


# -- against torch -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@contextlib.contextmanager
def quiet() -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def tensors(torch: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "w": torch.randn(5, 7),
        "t": torch.randn(5, 7).t(),
        "part": torch.randn(9)[2:5],
        "bf16": torch.randn(3, 2).bfloat16(),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "i": torch.tensor(3),
        "bool": torch.tensor([True, False]),
        "c": torch.randn(2, dtype=torch.complex64),
        "none": torch.zeros(0, 3),
        "same": torch.ones(2).expand(3, 2),
    }


def test_what_torch_saves_is_what_it_loads(torch: Any, tmp_path: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    held = tensors(torch)
    layers = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
    saved_ = {"model": held, "step": 3, "optim": {"state": {"w": {"exp_avg": held["w"]}}}, "layers": layers}
    with quiet():
        checkpoint.save(saved_, checkpoint_id=tmp_path / "dcp", no_dist=True)
        dcp_to_torch_save(tmp_path / "dcp", tmp_path / "m.pth")
    with open_reader(tmp_path / "dcp") as ours, open_reader(tmp_path / "m.pth", state_dict="model") as theirs:
        assert {name: ours.specs[name] for name in held} == dict(theirs.specs)
        for name in held:
            assert ours.read(name).tobytes() == theirs.read(name).tobytes(), name
            assert ours.check(name)
        assert ours.also["step"] == "3"
        assert ours.notes == []
        ours.check_rest()


RANKS = """
import datetime, sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(2)
model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
columns = torch.arange(12.).reshape(3, 4)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(2, 5)).sum().backward()
from torch.distributed.checkpoint.state_dict import get_state_dict
state, optim = get_state_dict(model, optimizer)
state = {**state, "columns": distribute_tensor(columns, mesh, [Shard(1)]),
         "both": distribute_tensor(columns, mesh, [Replicate()]), "plain": columns}
checkpoint.save({"model": state, "optim": optim, "step": 4}, checkpoint_id=folder)
if rank == 0:
    torch.save({**whole, "columns": columns, "both": columns, "plain": columns}, folder + ".pth")
dist.barrier()
dist.destroy_process_group()
"""


def test_shards_of_two_ranks(torch: Any, tmp_path: Path) -> None:
    """FSDP's and DTensors', saved by two processes; the third row of three and the one of one are uneven."""
    folder = tmp_path / "sharded"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(rank), str(tmp_path / "store"), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    assert len([*folder.glob("*.distcp")]) == 2
    with open_reader(folder) as ours, open_reader(tmp_path / "sharded.pth") as theirs:
        assert ours.state_dict == "model"
        assert {name: ours.specs[name] for name in theirs.specs} == dict(theirs.specs)
        for name in theirs.specs:
            assert ours.read(name).tobytes() == theirs.read(name).tobytes(), name
        assert ours.raw("0.weight") is None, "it is in two parts"
        assert ours.also["step"] == "4"
        assert ours.notes == []
        ours.check_rest()
