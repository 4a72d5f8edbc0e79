"""The containers before zip: pickle streams and tar."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.errors import FormatError
from ckptkit.formats.torch_zip import TorchReader
from tests.support.damage import mutations, survives
from tests.support.torch_files import (
    STORAGE,
    TENSOR,
    legacy,
    name,
    number,
    table,
    tar_members,
    tensor,
    text,
    whole,
    write_tar,
)

GOOD = whole(table(w=TENSOR))


def open_raw(folder: Path, raw: bytes) -> TorchReader:
    (folder / "m.pth").write_bytes(raw)
    return TorchReader(folder / "m.pth")


def test_stream_by_hand(tmp_path: Path) -> None:
    with open_raw(tmp_path, legacy(GOOD)) as reader:
        assert reader.read("w").tolist() == [1.5, -2.0]
        assert reader.check("w") is False


def view(key: str, offset: int, count: int) -> bytes:
    """A persistent id that is a view of storage "0" (4 float32)."""
    parts = text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + number(4)
    return b"(" + parts + b"(" + text(key) + number(offset) + number(count) + b"ttQ"


def test_views_of_storages(tmp_path: Path) -> None:
    pickled = whole(
        table(a=tensor(store=view("v1", 1, 3), shape=(2,), offset=1), b=tensor(store=view("v2", 0, 2)))
    )
    with open_raw(tmp_path, legacy(pickled, {"0": (4, struct.pack("<4f", 10, 11, 12, 13))})) as reader:
        assert reader.read("a").tolist() == [12, 13]
        assert reader.read("b").tolist() == [10, 11]


BAD_STREAMS: dict[str, bytes] = {
    "big-endian": legacy(GOOD, little=False),
    "another protocol": legacy(GOOD).replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2), 1),
    "storage too long for the file": legacy(GOOD, {"0": (3, STORAGE)}),
    "storage of negative length": legacy(GOOD, {"0": (-1, STORAGE)}),
    "storage of absurd length": legacy(GOOD, {"0": (1 << 62, STORAGE)}),
    "storage shorter than declared": legacy(GOOD, {"0": (1, STORAGE[:4])}),
    "storage of another name": legacy(GOOD, {"1": (2, STORAGE)}),
    "storage that nobody uses": legacy(GOOD, {"0": (2, STORAGE), "1": (2, STORAGE)}),
    "view beyond its storage": legacy(whole(table(a=tensor(store=view("v", 3, 2)))), {"0": (4, STORAGE * 2)}),
    "malformed view": legacy(
        whole(table(a=tensor(store=view("v", 0, 2).replace(text("v") + number(0), text("v"))))),
        {"0": (4, STORAGE * 2)},
    ),
    "keys are no list": legacy(GOOD).replace(pickle.dumps(["0"], 2), pickle.dumps({"0": 1}, 2)),
    "system info is no table": legacy(GOOD)[:15] + pickle.dumps(1001, 2) + pickle.dumps(3, 2),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_bad_streams(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError, match=r"m\.pth"):
        open_raw(tmp_path, BAD_STREAMS[case])


def test_tar(tmp_path: Path) -> None:
    with TorchReader(write_tar(tmp_path / "m.pth", tar_members())) as reader:
        assert reader.read("w").tolist() == [[0, 3], [1, 4], [2, 5]]
        assert reader.read("v").tolist() == [3, 4]
        assert reader.format == "torch"


def test_tar_reads_as_torch_reads_it(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    path = write_tar(tmp_path / "m.pth", tar_members())
    theirs = torch.load(path, weights_only=False)  # three lines above we wrote it
    with TorchReader(path) as reader:
        assert {n: reader.read(n).tolist() for n in reader.specs} == {
            n: t.tolist() for n, t in theirs.items()
        }


@pytest.mark.parametrize("missing", ["pickle", "storages", "tensors"])
def test_tar_without_a_member(tmp_path: Path, missing: str) -> None:
    members = tar_members()
    del members[missing]
    with pytest.raises(FormatError, match=f"a tar without {missing}"):
        TorchReader(write_tar(tmp_path / "m.pth", members))


@pytest.mark.parametrize("between", [0, 700, 2 << 20])
def test_tars_behind_each_other_are_read_whole(tmp_path: Path, between: int) -> None:
    members = tar_members()
    first = write_tar(
        tmp_path / "a", {name: members.pop(name) for name in ("sys_info", "storages")}
    ).read_bytes()
    second = write_tar(tmp_path / "b", members).read_bytes()
    path = tmp_path / "m.pth"
    path.write_bytes(first + bytes(between // 512 * 512) + second)
    with TorchReader(path) as reader:
        assert reader.read("w").tolist() == [[0, 3], [1, 4], [2, 5]]
    for garbage in (b"x", b"garbage" * 200):
        path.write_bytes(write_tar(tmp_path / "c", tar_members()).read_bytes() + garbage)
        with pytest.raises(FormatError, match="damaged or truncated tar header"):
            TorchReader(path)


def changed(member: str, old: bytes, new: bytes) -> dict[str, bytes]:
    members = tar_members()
    assert members[member].count(old) >= 1
    return {**members, member: members[member].replace(old, new)}


BAD_TARS = {
    "storage too long": changed("storages", struct.pack("<q", 6), struct.pack("<q", 7000)),
    "storage of unknown type": changed("storages", b"FloatStorage", b"Evil_Storage"),
    "view beyond its storage": changed(
        "storages", number(51) + number(50) + number(2), number(51) + number(50) + number(9)
    ),
    "view of nothing": changed("storages", number(51) + number(50), number(51) + number(99)),
    "too many storages": changed("storages", pickle.dumps(1, 2), pickle.dumps(2_000_000, 2)),
    "more storages than there are": changed("storages", pickle.dumps(1, 2), pickle.dumps(3, 2)),
    "tensor of many axes": changed("tensors", struct.pack("<i4x2q", 2, 2, 3)[:4], struct.pack("<i", 99)),
    "tensor of negative size": changed("tensors", struct.pack("<2q", 2, 3), struct.pack("<2q", 2, -3)),
    "tensor beyond its storage": changed("tensors", struct.pack("<2q", 2, 3), struct.pack("<2q", 2, 300)),
    "tensor without storage": changed("tensors", number(70) + number(50), number(70) + number(70)),
    "more tensors than there are": changed("tensors", pickle.dumps(2, 2), pickle.dumps(5, 2)),
    "unknown tensor": changed("pickle", text("70"), text("88")),
    "key is no number": changed("pickle", text("70"), text("7x")),
}


@pytest.mark.parametrize("case", BAD_TARS)
def test_bad_tars(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError, match=r"m\.pth"):
        TorchReader(write_tar(tmp_path / "m.pth", BAD_TARS[case]))


def test_tar_mutations(tmp_path: Path) -> None:
    raw = write_tar(tmp_path / "m.pth", tar_members()).read_bytes()
    opened = sum(
        survives(tmp_path / "m.pth", damaged, TorchReader) for damaged in mutations(raw, 1500, seed=4)
    )
    assert 0 < opened < 1500


BEHIND = {
    "legacy": legacy(GOOD) + b"x",
    "two legacy files": legacy(GOOD) * 2,
    "plain pickle": pickle.dumps({"w": 1}) + b"x",
}


@pytest.mark.parametrize("case", BEHIND)
def test_bytes_behind_the_end_are_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="behind its end belong to nothing"):
        open_raw(tmp_path, BEHIND[case])


def test_keys_of_the_memo_that_collide_are_refused(tmp_path: Path) -> None:
    colliding = b"".join(b"p%d\n" % (n * (2**61 - 1)) for n in range(1, 9))
    with pytest.raises(FormatError, match="no opcode has"):
        open_raw(tmp_path, legacy(whole(b"N" + colliding)))


def test_a_state_dict_under_endless_keys_is_refused(tmp_path: Path) -> None:
    long = text("k" * 600)
    with pytest.raises(FormatError, match="under keys of more than 1000 characters"):
        open_raw(tmp_path, legacy(whole(b"}" + long + b"}" + long + table(w=TENSOR) + b"ss")))
