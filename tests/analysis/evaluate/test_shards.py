"""WebDataset shards: what an index finds in real tar files, and real damage to them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from ckptkit.analysis.evaluate.opening import open_images
from ckptkit.analysis.evaluate.samples import MOST_BYTES, Sample
from ckptkit.analysis.evaluate.shards import read_shards
from ckptkit.base.errors import FormatError, NotFoundError, StorageError, UsageError
from tests.support.evaluation import shard


def found(*data: str | Path, classes: int | None = 1000) -> dict[str, int | None]:
    return {sample.name: sample.label for sample in open_images(data, classes).samples}


def test_samples_of_two_shards_read_at_their_offsets(tmp_path: Path):
    first = {"n1/a.b/0001.jpg": b"one" * 300, "n1/a.b/0001.cls": b"7\n", "n1/a.b/0001.seg.png": b"mask"}
    second = {
        "0002.cls": b"\xef\xbb\xbf207\r\n",
        "0002.PNG": b"two",
        "0003.webp": b"",
        "0003.json": b'{"label": 3, "x": []}',
    }
    shard(tmp_path / "val-000.tar", first)
    shard(tmp_path / "val-001.tar", second)
    (tmp_path / "notes.txt").touch()
    whole = open_images([tmp_path], 1000)
    assert {sample.name: (sample.label, sample.read()) for sample in whole.samples} == {
        "val-000.tar/n1/a.b/0001": (7, b"one" * 300),
        "val-001.tar/0002": (207, b"two"),
        "val-001.tar/0003": (3, b""),
    }
    assert whole.what == f"2 shards, {tmp_path}"
    assert found(tmp_path, classes=None) == dict.fromkeys(sample.name for sample in whole.samples)


def test_patterns(tmp_path: Path):
    for n in range(3):
        shard(tmp_path / f"val-{n:03d}.tar", {"a.jpg": b"x", "a.cls": str(n).encode()})
    every = {f"val-{n:03d}.tar/a": n for n in range(3)}
    assert found(f"{tmp_path}/val-{{000..002}}.tar") == every
    assert found(f"{tmp_path}/val-*.tar") == every
    assert found(tmp_path / "val-001.tar") == {"val-001.tar/a": 1}
    assert found(tmp_path / "val-000.tar", f"{tmp_path}/val-00[12].tar") == every
    with pytest.raises(NotFoundError, match=r"2 of 4 shards are not there, .*val-003.tar first"):
        found(f"{tmp_path}/val-{{001..004}}.tar")
    with pytest.raises(NotFoundError, match="nothing fits"):
        found(f"{tmp_path}/train-*.tar")
    with pytest.raises(UsageError, match=r"\{5..1\} is no range"):
        found(f"{tmp_path}/val-{{5..1}}.tar")
    with pytest.raises(UsageError, match="no range"):
        found(f"{tmp_path}/val-{{0..99999999}}.tar")
    with pytest.raises(UsageError, match="more than 100,000 shards"):
        found(f"{tmp_path}/{{0..9999}}-{{0..9999}}.tar")


def test_shards_of_one_name_in_two_folders(tmp_path: Path):
    shard(tmp_path / "a/val.tar", {"1.jpg": b"x", "1.cls": b"1"})
    shard(tmp_path / "b/val.tar", {"1.jpg": b"x", "1.cls": b"2"})
    assert sorted(found(f"{tmp_path}/?/val.tar").values()) == [1, 2]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.jpg": b"x"}, "a: an image without a class"),
        ({"a.cls": b"1"}, "sample a has a class but no image"),
        ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"1"}, "sample a has two images"),
        ({"a.jpg": b"x", "a.cls": b"dog"}, "'dog' is no class"),
        ({"a.jpg": b"x", "a.cls": b"1000"}, "class 1000 for a model of 1,000 classes"),
        ({"a.jpg": b"x", "a.cls": b"\xff\xfe"}, "is no class"),
        ({"a.jpg": b"x", "a.cls": b"1" * 70_000}, "its .cls has 70,000 bytes"),
        ({"a.jpg": b"x", "a.json": b"[1]"}, "its .json has no label"),
        ({"a.jpg": b"x", "a.json": b"{"}, "its .json cannot be read"),
        ({"a.jpg": b"x", "a.json": b"[" * 60_000}, "its .json cannot be read"),
        ({"a.jpg": b"x", "a.json": b'{"label": true}'}, "'True' is no class"),
    ],
)
def test_samples_that_cannot_be_scored(tmp_path: Path, files: dict[str, bytes], said: str):
    with pytest.raises(FormatError, match=said):
        found(shard(tmp_path / "val.tar", files))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes):
    path = tmp_path / "val.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(FormatError, match=r"member 'a.jpg' is (a link|no plain file), which is refused"):
        found(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_shards_are_refused(tmp_path: Path, mode: str):
    path = tmp_path / "val.tar"
    with tarfile.open(path, mode) as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(FormatError, match="compressed with"):
        found(path)


def test_every_truncation_is_noticed(tmp_path: Path):
    files = {"a.jpg": b"x" * 700, "a.cls": b"1", "b.jpg": b"y" * 10, "b.cls": b"2"}
    whole = shard(tmp_path / "whole.tar", files).read_bytes()
    end = 512 * (1 + 2 + 2 + 2 + 2)  # four headers, and the data in blocks
    path = tmp_path / "cut.tar"
    for size in (*range(1, end, 100), 1024 + 512, 2048, 2560, end - 1, end):
        path.write_bytes(whole[:size])
        with pytest.raises((FormatError, NotFoundError)):
            found(path)
    path.write_bytes(whole[: end + 512])  # one block of zeros says that this is the end
    assert len(found(path)) == 2


@pytest.mark.parametrize("between", [0, 512, 3 << 20])
def test_shards_behind_each_other_are_read_whole(tmp_path: Path, between: int):
    parts = [
        shard(tmp_path / name, {f"{name}.jpg": b"x" * 700, f"{name}.cls": str(n).encode()}).read_bytes()
        for n, name in enumerate("abc")
    ]
    path = tmp_path / "joined.tar"
    path.write_bytes(bytes(between).join(parts))
    assert found(path) == {"joined.tar/a": 0, "joined.tar/b": 1, "joined.tar/c": 2}
    for tail, reason in (
        (b"garbage", "end mark is not a tar archive"),
        (parts[0][:1024], "no end mark|unexp"),
    ):
        path.write_bytes(parts[1] + tail)
        with pytest.raises(FormatError, match=reason):
            found(path)


def test_damaged_headers_give_one_kind_of_error(tmp_path: Path):
    whole = shard(tmp_path / "whole.tar", {"a.jpg": b"x" * 700, "a.cls": b"1"}).read_bytes()
    path = tmp_path / "damaged.tar"
    outcomes = set()
    for offset in range(0, 512, 5):
        for value in (0, 0x80, 0xFF):
            path.write_bytes(whole[:offset] + bytes([value]) + whole[offset + 1 :])
            try:
                outcomes.add(len(found(path)))
            except (FormatError, NotFoundError) as error:
                outcomes.add(type(error).__name__)
    assert "FormatError" in outcomes


def test_a_header_that_asks_for_everything_is_refused(tmp_path: Path):
    """An extended header of two megabytes: tarfile would read it whole, however large."""
    member = tarfile.TarInfo("a.jpg")
    member.type = tarfile.XHDTYPE
    member.size = 2 << 20
    path = tmp_path / "val.tar"
    path.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + bytes(3 << 20))
    with pytest.raises(FormatError, match="a header of"):
        found(path)


def test_a_header_with_an_endless_number_is_refused(tmp_path: Path):
    """Python's tarfile may search it in a time that is the square of the number's length."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("0.jpg")
        info.pax_headers = {"comment": "1" * 900_000}
        archive.addfile(info)
    with pytest.raises(FormatError, match="a number of 900,000 digits"):
        found(path)


def test_long_names_and_pax_headers_work(tmp_path: Path):
    name = "d" * 150 + "/" + "ü" * 60
    path = tmp_path / "val.tar"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(path, "w", format=kind) as archive:
            for ending, body in ((".jpg", b"x"), (".cls", b"5")):
                member = tarfile.TarInfo(name + ending)
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
        assert found(path) == {f"val.tar/{name}": 5}


def test_no_shard_at_all(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"this is no archive")
    with pytest.raises(FormatError):
        found(tmp_path / "a.tar")
    with pytest.raises(NotFoundError, match="no images in it"):
        found(shard(tmp_path / "a.tar", {"a.txt": b"x"}))
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(FormatError):
        found(tmp_path / "a.tar")


def test_names_that_outweigh_the_images_are_refused(tmp_path: Path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(8):
            archive.addfile(tarfile.TarInfo(f"{number}" + "n" * 900_000 + ".jpg"), io.BytesIO())
    with pytest.raises(FormatError, match="its members' names take more than the images could"):
        read_shards([path], None, "x")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(StorageError, match="named pipe"):
        read_shards([tmp_path / "x.tar"], None, "x")
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(StorageError, match="named pipe"):
        Sample("x", tmp_path / "x.jpg").read()


def test_an_image_larger_than_any_is_refused_unread(tmp_path: Path):
    path = tmp_path / "x.jpg"
    path.touch()
    os.truncate(path, MOST_BYTES + 1)
    for sample in (Sample("x", path), Sample("x", path, size=MOST_BYTES + 1)):
        with pytest.raises(FormatError, match=r"x: .*too large for a picture"):
            sample.read()
