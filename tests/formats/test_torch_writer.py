"""What we write, torch opens: value for value, without unpickling anything but tensors."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.tensors import DTYPES, OPAQUE, DType, RawTensor, TensorSpec
from ckptkit.formats import torch_writer
from ckptkit.formats import zip as zip_archive
from ckptkit.formats.torch_reader import TorchReader
from ckptkit.formats.torch_writer import TorchWriter, checkpoint_pickle
from tests.support.tensors import arrays, same_bits, some_arrays, specs_of, write_all

WITHOUT = frozenset({"float8_e4m3b11fnuz"})
HELD = arrays(without=WITHOUT)
META = {"layout": "torch", "entry": "tiny-moat0", "note": "ü"}


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_all(TorchWriter(tmp_path / "m.pth", specs_of(HELD), META), HELD)
    return tmp_path / "m.pth"


@pytest.mark.parametrize("mapped", [True, False])
def test_torch_opens_it(torch: Any, written: Path, mapped: bool) -> None:
    loaded = torch.load(written, weights_only=True, mmap=mapped)
    assert list(loaded) == list(HELD)
    for name, wanted in HELD.items():
        tensor = loaded[name]
        assert str(tensor.dtype) == f"torch.{wanted.dtype.name}"
        assert tuple(tensor.shape) == wanted.shape
        assert tensor.is_contiguous()
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == wanted.tobytes(), name
        assert not tensor.requires_grad


def test_torch_opens_types_of_which_only_bytes_are_known(torch: Any, tmp_path: Path) -> None:
    raw = bytes(range(48))
    specs = [
        TensorSpec("scale", OPAQUE["float8_e8m0fnu"], (4, 12)),
        TensorSpec("pairs", OPAQUE["float4_e2m1fn_x2"], (4, 24)),
        TensorSpec("half complex", OPAQUE["complex32"], (12,)),
    ]
    with TorchWriter(tmp_path / "m.pth", specs, {}) as writer:
        for spec in specs:
            writer.write(spec.name, RawTensor(spec.shape, memoryview(raw)))
        writer.finish()
    loaded = torch.load(tmp_path / "m.pth", weights_only=True)
    shapes = {"scale": (4, 12), "pairs": (4, 12), "half complex": (12,)}
    for spec in specs:
        assert str(loaded[spec.name].dtype) == f"torch.{spec.dtype.torch}"
        assert loaded[spec.name].shape == shapes[spec.name]
        assert bytes(loaded[spec.name].view(torch.uint8).reshape(-1).tolist()) == raw


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("w", DTYPES["float8_e4m3b11fnuz"], (2,)),
        TensorSpec("w", DType("Q7_X", 0, "opaque", safetensors="Q7_X"), (3,), 5),
        TensorSpec("w", OPAQUE["float4_e2m1fn_x2"], (2, 3)),
    ],
    ids=["only in TensorFlow", "unknown", "odd rows of packed pairs"],
)
def test_types_that_torch_has_not(tmp_path: Path, spec: TensorSpec) -> None:
    with pytest.raises(ConversionError, match=f"'w': torch has no {spec.dtype}"):
        TorchWriter(tmp_path / "m.pth", [spec], {})
    assert list(tmp_path.iterdir()) == []


def test_torch_models_load_it(torch: Any, tmp_path: Path) -> None:
    source, target = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)) for _ in range(2)
    )
    held = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    write_all(TorchWriter(tmp_path / "m.pth", specs_of(held), {}), held)
    target.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True, mmap=True), strict=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_torch_can_save_what_it_loaded(torch: Any, written: Path, tmp_path: Path) -> None:
    torch.save(torch.load(written, weights_only=True), tmp_path / "again.pth")
    with TorchReader(tmp_path / "again.pth") as reader:
        for name, wanted in HELD.items():
            assert same_bits(reader.read(name), wanted)


def test_we_read_it(written: Path) -> None:
    with TorchReader(written) as reader:
        assert list(reader.specs) == list(HELD)
        assert reader.metadata == META
        assert reader.notes == []
        for name, wanted in HELD.items():
            assert same_bits(reader.read(name), wanted)
            assert reader.check(name)


def test_the_archive_is_a_proper_zip(written: Path) -> None:
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None  # every CRC-32, recomputed
        rows = archive.infolist()
        assert {row.compress_type for row in rows} == {zipfile.ZIP_STORED}
        assert rows[0].filename == "archive/data.pkl"
        assert archive.read("archive/byteorder") == b"little"
        for row in rows:
            header = written.read_bytes()[row.header_offset : row.header_offset + 30]
            data = (
                row.header_offset
                + 30
                + int.from_bytes(header[26:28], "little")
                + int.from_bytes(header[28:30], "little")
            )
            assert data % 64 == 0
            assert int.from_bytes(header[14:18], "little") == row.CRC == zlib.crc32(archive.read(row))


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        write_all(TorchWriter(tmp_path / name, specs_of(HELD), dict(reversed(META.items()))), HELD)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_write_returns_crc32c_and_casts(torch: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((40, 30), dtype=np.float32)
    specs = [
        TensorSpec("half", DTYPES["float16"], (30, 40)),
        TensorSpec("brain", DTYPES["bfloat16"], (30, 40)),
    ]
    held = {"half": values.T, "brain": values.T}
    _, sums = write_all(TorchWriter(tmp_path / "m.pth", specs, {}), held)
    wanted = torch.from_numpy(values).t().contiguous()
    loaded = torch.load(tmp_path / "m.pth", weights_only=True)
    assert torch.equal(loaded["half"], wanted.half())
    assert torch.equal(loaded["brain"], wanted.bfloat16())
    assert sums["half"] == google_crc32c.value(wanted.half().numpy().tobytes())


def test_beyond_four_gigabytes(torch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same records as beyond 4 GB and 65535 entries, with the limits moved down."""
    monkeypatch.setattr(zip_archive, "_LARGE", 3000)
    monkeypatch.setattr(zip_archive, "_MANY", 10)
    write_all(TorchWriter(tmp_path / "m.pth", specs_of(HELD), META), HELD)
    raw = (tmp_path / "m.pth").read_bytes()
    assert b"PK\x06\x06" in raw
    assert b"PK\x06\x07" in raw
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        assert archive.testzip() is None
    loaded = torch.load(tmp_path / "m.pth", weights_only=True, mmap=True)
    with TorchReader(tmp_path / "m.pth") as reader:
        for name, wanted in HELD.items():
            assert loaded[name].reshape(-1).view(torch.uint8).numpy().tobytes() == wanted.tobytes()
            assert same_bits(reader.read(name), wanted)


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_many_tensors(torch: Any, tmp_path: Path, count: int) -> None:
    held = {f"layer.{i}.weight": np.full((), i, np.int64) for i in range(count)}
    write_all(TorchWriter(tmp_path / "m.pth", specs_of(held), {}), held)
    assert {n: t.item() for n, t in torch.load(tmp_path / "m.pth", weights_only=True).items()} == {
        n: int(a) for n, a in held.items()
    }


def test_an_empty_state_dict_is_still_one(torch: Any, tmp_path: Path) -> None:
    write_all(TorchWriter(tmp_path / "m.pth", [], {}), {})
    assert torch.load(tmp_path / "m.pth", weights_only=True) == {}


@pytest.mark.parametrize(
    "value", [0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**40 - 1, 2**47, 2**62]
)
def test_integers_in_the_pickle(value: int) -> None:
    raw = torch_writer.integer_opcodes(value)
    assert next(argument for _, argument, _ in pickletools.genops(raw + b".")) == value


def test_the_pickle_stays_small() -> None:
    specs = [TensorSpec(f"stage{i}.weight", DTYPES["float32"], (64, 64, 3, 3)) for i in range(1000)]
    raw = checkpoint_pickle(specs)
    assert len(raw) < 100 * len(specs)
    pickletools.dis(raw, out=io.StringIO())  # checks the whole structure on the way


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=some_arrays(without=WITHOUT))
def test_round_trip(tmp_path: Path, held: dict[str, Any]) -> None:
    write_all(TorchWriter(tmp_path / "m.pth", specs_of(held), {"a": "b"}, force=True), held)
    if not held:
        return
    with TorchReader(tmp_path / "m.pth") as reader:
        prefix = "module." if all(name.startswith("module.") for name in held) else ""
        assert list(reader.specs) == [name.removeprefix(prefix) for name in held]
        assert all(same_bits(reader.read(name.removeprefix(prefix)), array) for name, array in held.items())


# -- the promises of every writer ----------------------------------------------------------------------------


def test_shape_and_completeness_are_enforced(tmp_path: Path) -> None:
    held = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    with TorchWriter(tmp_path / "m.pth", specs_of(held), {}) as writer:
        assert list(writer.order) == ["a", "b"]
        with pytest.raises(ValueError, match="shape"):
            writer.write("a", held["b"])
        writer.write("a", held["a"])
        with pytest.raises(ValueError, match=r"1 tensor was never written"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_after_an_interruption(tmp_path: Path) -> None:
    held = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    with pytest.raises(KeyboardInterrupt), TorchWriter(tmp_path / "m.pth", specs_of(held), {}) as writer:
        writer.write("a", held["a"])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(b"precious")
    with pytest.raises(UsageError, match="--force"):
        TorchWriter(tmp_path / "m.pth", [], {})
    assert (tmp_path / "m.pth").read_bytes() == b"precious"
    write_all(TorchWriter(tmp_path / "m.pth", [], {}, force=True), {})
    assert (tmp_path / "m.pth").read_bytes() != b"precious"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("names", [["a", "a"], ["\ud800"]])
def test_impossible_names(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConversionError):
        TorchWriter(tmp_path / "m.pth", [TensorSpec(name, DTYPES["float32"], ()) for name in names], {})
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_may_share_the_storage_of_another(torch: Any, tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    specs = [TensorSpec(name, DTYPES["float32"], (2, 3)) for name in ("second", "first", "alone")]
    shared = {"second": "first"}
    writer = TorchWriter(tmp_path / "m.pth", specs, {}, shared=shared)
    assert list(writer.order) == ["first", "alone"]
    write_all(writer, {"first": weight, "alone": -weight})
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        assert len([name for name in archive.namelist() if "/data/" in name]) == 2
    loaded = torch.load(tmp_path / "m.pth", weights_only=True)
    assert list(loaded) == ["second", "first", "alone"]
    loaded["first"][0, 0] = 100
    assert loaded["second"][0, 0] == 100 and loaded["alone"][0, 0] == 0
    with TorchReader(tmp_path / "m.pth") as reader:
        assert reader.same == {"first": "second"}
