"""Test images: folders of classes, labels in a file, shards; samples of them; decoding ahead."""

from __future__ import annotations

import io
import os
import random
import tarfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.analysis.evaluate.data import (
    MOST_BYTES,
    Sample,
    any_images,
    image_set,
    load_batches,
    open_images,
    read_shards,
    stratified,
)
from ckptkit.base.errors import FormatError, NotFoundError, StorageError, UsageError
from ckptkit.models.images.preprocessing import Preprocessing
from tests.support.evaluation import SIDE, pictures, pixels, png, shard

SIZES = {0: 1, 1: 5, 2: 9, 3: 30}


def samples() -> list[Sample]:
    return [Sample(f"{label}/{n}", Path("x"), label) for label, size in SIZES.items() for n in range(size)]


@pytest.mark.parametrize("limit", range(1, 46))
def test_every_class_gives_its_share(limit: int):
    found = samples()
    chosen = stratified(found, limit)
    assert len(set(chosen)) == limit
    assert chosen == sorted(chosen)
    taken = Counter(found[position].label for position in chosen)
    most = max(taken.values())
    for label, size in SIZES.items():  # a class with less than the most has no more, or is one behind
        assert taken[label] >= min(size, most - 1)


def test_the_choice_depends_on_names_alone():
    found = samples()
    shuffled = random.Random(3).sample(found, len(found))
    once = {found[position].name for position in stratified(found, 17)}
    again = {shuffled[position].name for position in stratified(shuffled, 17)}
    assert once == again
    more = {found[position].name for position in stratified(found, 18)}
    assert once < more  # a larger sample holds the smaller one


def test_a_sample_is_not_simply_the_first():
    found = [Sample(f"a/{n:03d}", Path("x"), 0) for n in range(100)]
    assert stratified(found, 50) != list(range(50))


def test_a_set_tells_a_changed_file_from_an_untouched_one(tmp_path: Path):
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(b"12345")
    whole = any_images(tmp_path)
    assert [sample.name for sample in whole.samples] == ["a.jpg", "b.jpg"]
    assert any_images(tmp_path).identity == whole.identity
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    touched = any_images(tmp_path).identity
    assert touched != whole.identity
    (tmp_path / "c.jpg").write_bytes(b"")
    assert any_images(tmp_path).identity not in (touched, whole.identity)


def test_the_same_images_of_other_classes_are_another_set(tmp_path: Path):
    path = tmp_path / "x"
    path.touch()
    one = image_set([Sample("a", path, 1)], "here")
    assert image_set([Sample("a", path, 1)], "here").identity == one.identity
    assert image_set([Sample("a", path, 2)], "here").identity != one.identity


def test_one_name_for_two_images_is_refused():
    with pytest.raises(FormatError, match="a is there twice"):
        image_set([Sample("a", Path("x"), 1), Sample("a", Path("y"), 2)], "here")


def test_reading_a_part_of_a_file(tmp_path: Path):
    path = tmp_path / "shard"
    path.write_bytes(b"0123456789")
    assert Sample("a", path, 1, 3, 4).read() == b"3456"
    assert Sample("a", path).read() == b"0123456789"
    with pytest.raises(FormatError, match="the shard ends inside the image"):
        Sample("a", path, 1, 8, 4).read()
    with pytest.raises(StorageError):
        Sample("a", tmp_path / "none").read()


GOLDFISH, RETRIEVER = "n01443537", "n02099601"  # classes 1 and 207


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def labels_of(folder: Path, classes: int | None = 1000, **options: Any) -> dict[str, int | None]:
    found = open_images([folder], classes, **options)
    return {sample.name: sample.label for sample in found.samples}


def test_wnids_of_imagenet(tmp_path: Path):
    tree(
        tmp_path,
        f"{RETRIEVER}/a.JPEG",
        f"{RETRIEVER}/deep/b.png",
        f"{GOLDFISH}/c.webp",
        f"{GOLDFISH}/notes.txt",
    )
    tree(tmp_path, f"{GOLDFISH}/.hidden.jpg", ".git/x.jpg", "README.md")
    assert labels_of(tmp_path) == {
        f"{GOLDFISH}/c.webp": 1,
        f"{RETRIEVER}/a.JPEG": 207,
        f"{RETRIEVER}/deep/b.png": 207,
    }
    assert "WordNet ids" in open_images([tmp_path], 1000).rule


def test_folders_that_are_no_wnids_are_named(tmp_path: Path):
    tree(tmp_path, f"{RETRIEVER}/a.jpg", "cats/b.jpg", "dogs/c.jpg")
    with pytest.raises(UsageError, match=r"not classes of ImageNet-1K: cats, dogs \(2 of 3 folders\)"):
        labels_of(tmp_path)


def test_other_numbers_of_classes_go_by_the_order_of_names(tmp_path: Path):
    tree(tmp_path, "zebra/1.jpg", "ant/2.jpg", "Bee/3.jpg")
    (tmp_path / "cow").mkdir()  # a class without images here
    assert labels_of(tmp_path, 4) == {"Bee/3.jpg": 0, "ant/2.jpg": 1, "zebra/1.jpg": 3}
    assert "order of their names" in open_images([tmp_path], 4).rule
    with pytest.raises(UsageError, match="4 class folders for a model of 10 classes"):
        labels_of(tmp_path, 10)


@pytest.mark.parametrize(
    ("names", "as_numbers"),
    [
        ([str(n) for n in range(12)], [str(n) for n in range(12)]),
        (["class9", "class10", "class1"], ["class1", "class9", "class10"]),
        (["01", "2", "003"], ["01", "2", "003"]),
        (["b2", "b10", "a"], ["a", "b2", "b10"]),
    ],
)
def test_names_with_two_orders_are_remarked_on_until_one_is_said(
    tmp_path: Path, names: list[str], as_numbers: list[str]
):
    tree(tmp_path, *(f"{name}/x.jpg" for name in names))
    found = {
        order: open_images([tmp_path], len(names), class_order=order) for order in (None, "text", "number")
    }
    taken = {
        order: [one.name for one in sorted(set_.samples, key=lambda one: one.label or 0)]
        for order, set_ in found.items()
    }
    assert taken[None] == taken["text"] == [f"{name}/x.jpg" for name in sorted(names)]
    assert taken["number"] == [f"{name}/x.jpg" for name in as_numbers]
    (remark,) = found[None].remarks
    assert "--class-order number" in remark and "--class-order text" in remark
    assert found["text"].remarks == found["number"].remarks == ()
    assert found["text"].identity != found["number"].identity
    assert (found["text"].rule[-7:], found["number"].rule[-10:]) == ("as text", "as numbers")


def test_names_with_one_order_are_not_remarked_on(tmp_path: Path):
    tree(tmp_path, *(f"{name}/x.jpg" for name in ("00", "01", "10", "cat")))
    assert open_images([tmp_path], 4).remarks == ()


def test_a_thousand_numbered_folders_are_no_wnids_but_may_have_an_order(tmp_path: Path):
    tree(tmp_path, *(f"{n}/x.jpg" for n in range(1000)))
    with pytest.raises(UsageError, match="--class-order number"):
        labels_of(tmp_path)
    assert labels_of(tmp_path, class_order="number") == {f"{n}/x.jpg": n for n in range(1000)}
    with pytest.raises(UsageError, match="--class-order works only with class folders"):
        labels_of(tmp_path, None, class_order="number")


def test_links_to_folders_are_followed(tmp_path: Path):
    store = tree(tmp_path / "store", "a.jpg", "deep/b.jpg")
    data = tree(tmp_path / "val", f"{GOLDFISH}/c.jpg")
    (data / GOLDFISH / "more").symlink_to(store)
    (data / RETRIEVER).symlink_to(store / "deep")
    (data / GOLDFISH / "d.jpg").symlink_to(store / "a.jpg")
    assert labels_of(data) == {
        f"{GOLDFISH}/c.jpg": 1,
        f"{GOLDFISH}/d.jpg": 1,
        f"{GOLDFISH}/more/a.jpg": 1,
        f"{GOLDFISH}/more/deep/b.jpg": 1,
        f"{RETRIEVER}/b.jpg": 207,
    }
    assert set(labels_of(data, None)) == set(labels_of(data))
    (tmp_path / "labels").write_text(f"{GOLDFISH}/more/deep/b.jpg 5")
    assert labels_of(data, labels=tmp_path / "labels") == {f"{GOLDFISH}/more/deep/b.jpg": 5}


def test_a_link_in_a_circle_is_remarked_on_and_not_followed(tmp_path: Path):
    data = tree(tmp_path / "val", f"{GOLDFISH}/deep/c.jpg")
    (data / GOLDFISH / "deep" / "up").symlink_to(data / GOLDFISH)
    (data / GOLDFISH / "root").symlink_to("..")
    found = open_images([data], 1000)
    assert [one.name for one in found.samples] == [f"{GOLDFISH}/deep/c.jpg"]
    assert found.remarks == tuple(
        f"{data / GOLDFISH / link} leads back to a folder that it is in, and was not followed"
        for link in ("deep/up", "root")
    )


@pytest.mark.parametrize("place", ["", f"{GOLDFISH}/"])
@pytest.mark.parametrize("link", ["more", "a.jpg", "itself"])
def test_a_link_that_leads_nowhere_is_not_left_out_silently(tmp_path: Path, place: str, link: str):
    tree(tmp_path, f"{GOLDFISH}/c.jpg")
    (tmp_path / place / link).symlink_to("itself" if link == "itself" else "/gone/away")
    with pytest.raises(NotFoundError, match=rf"{place}{link}: its link to .* cannot be followed"):
        labels_of(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_label_files_of_any_editor(tmp_path: Path, encoding: str, ending: str):
    data = tree(tmp_path / "val", "ä.jpg", "b.jpg")
    text = ("\ufeff" if encoding[-3:] in ("-le", "-be") else "") + ending.join(["ä.jpg 65", "b.jpg 7", ""])
    (tmp_path / "labels").write_bytes(text.encode(encoding))
    assert labels_of(data, labels=tmp_path / "labels") == {"ä.jpg": 65, "b.jpg": 7}
    (tmp_path / "labels").write_bytes(f"# names{ending}{text}".encode(encoding))
    if "\ufeff" not in text:
        assert labels_of(data, labels=tmp_path / "labels") == {"ä.jpg": 65, "b.jpg": 7}


def test_damaged_text_in_a_label_file(tmp_path: Path):
    data = tree(tmp_path / "val", "a.jpg")
    (tmp_path / "labels").write_bytes(b"\xff\xfea\0.\0j")
    with pytest.raises(FormatError, match="damaged UTF-16 text; write it in UTF-8"):
        labels_of(data, labels=tmp_path / "labels")


def test_a_flat_folder_with_labels(tmp_path: Path):
    data = tree(tmp_path / "val", "a 1.jpg", "b.png", "sub/c.jpg", "left.jpg")
    labels = tmp_path / "val.txt"
    labels.write_text(f"# name class\na 1.jpg 65\n\n./b.png\t{RETRIEVER}\nsub/c.jpg 999\n", encoding="utf-8")
    assert labels_of(data, labels=labels) == {"a 1.jpg": 65, "b.png": 207, "sub/c.jpg": 999}
    assert "1 image without a label left out" in open_images([data], 1000, labels=labels).rule


@pytest.mark.parametrize(
    ("line", "classes", "said"),
    [
        ("490", 1000, "not a name and a class"),
        ("a.jpg 1000", 1000, r"line 1: class 1000 for a model of 1,000 classes \(0 to 999\)"),
        ("a.jpg -1", 1000, "'-1' is not a class"),
        ("a.jpg tench", 1000, "'tench' is not a class"),
        (f"a.jpg {RETRIEVER}", 10, "is not a class"),
        ("a.jpg 1\na.jpg 2", 1000, "line 2: a.jpg has a class already"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path: Path, line: str, classes: int, said: str):
    data = tree(tmp_path / "val", "a.jpg")
    labels = tmp_path / "val.txt"
    labels.write_text(line, encoding="utf-8")
    with pytest.raises(FormatError, match=said):
        labels_of(data, classes, labels=labels)


def test_labels_of_absent_images(tmp_path: Path):
    data = tree(tmp_path / "val", "a.jpg")
    labels = tmp_path / "val.txt"
    labels.write_text("".join(f"{n}.jpg 1\n" for n in range(5)), encoding="utf-8")
    with pytest.raises(NotFoundError, match=r"lists missing images: 0.jpg, 1.jpg, 2.jpg and 2 more"):
        labels_of(data, labels=labels)
    labels.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(NotFoundError, match="no labels in it"):
        labels_of(data, labels=labels)
    with pytest.raises(NotFoundError, match="no such file of labels"):
        labels_of(data, labels=tmp_path / "none.txt")


def test_without_classes_every_image_counts(tmp_path: Path):
    tree(tmp_path, "a.jpg", "deep/er/b.PNG", "c.txt")
    assert labels_of(tmp_path, None) == {"a.jpg": None, "deep/er/b.PNG": None}


@pytest.mark.parametrize("classes", [1000, None])
def test_no_images(tmp_path: Path, classes: int | None):
    (tmp_path / GOLDFISH).mkdir()
    with pytest.raises(NotFoundError, match="no images in"):
        labels_of(tmp_path, classes)
    with pytest.raises(NotFoundError, match="no such folder or shard"):
        labels_of(tmp_path / "none", classes)


def test_a_flat_folder_without_labels(tmp_path: Path):
    tree(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match="--labels"):
        labels_of(tmp_path)


def test_a_folder_stands_alone(tmp_path: Path):
    tree(tmp_path, f"{GOLDFISH}/a.jpg")
    with pytest.raises(UsageError, match="only one can be given"):
        open_images([tmp_path, tmp_path], 1000)
    with pytest.raises(UsageError, match="no test images"):
        open_images([], 1000)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_an_unreadable_class_is_not_left_out_silently(tmp_path: Path):
    tree(tmp_path, f"{GOLDFISH}/a.jpg", f"{RETRIEVER}/b.jpg")
    (tmp_path / RETRIEVER).chmod(0)
    try:
        with pytest.raises(StorageError, match=RETRIEVER):
            labels_of(tmp_path)
    finally:
        (tmp_path / RETRIEVER).chmod(0o755)


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
    with pytest.raises(NotFoundError, match="nothing matches"):
        found(f"{tmp_path}/train-*.tar")
    with pytest.raises(UsageError, match=r"\{5..1\} is not a range"):
        found(f"{tmp_path}/val-{{5..1}}.tar")
    with pytest.raises(UsageError, match="not a range"):
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
        ({"a.jpg": b"x", "a.cls": b"dog"}, "'dog' is not a class"),
        ({"a.jpg": b"x", "a.cls": b"1000"}, "class 1000 for a model of 1,000 classes"),
        ({"a.jpg": b"x", "a.cls": b"\xff\xfe"}, "is not a class"),
        ({"a.jpg": b"x", "a.cls": b"1" * 70_000}, "its .cls has 70,000 bytes"),
        ({"a.jpg": b"x", "a.json": b"[1]"}, "its .json has no label"),
        ({"a.jpg": b"x", "a.json": b"{"}, "its .json cannot be read"),
        ({"a.jpg": b"x", "a.json": b"[" * 60_000}, "its .json cannot be read"),
        ({"a.jpg": b"x", "a.json": b'{"label": true}'}, "'True' is not a class"),
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
    with pytest.raises(FormatError, match=r"member 'a.jpg' is (a link|not a plain file), which is refused"):
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
        (parts[0][:1024], "truncated inside a member"),
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
    with pytest.raises(FormatError, match="headers claim 2097152 bytes"):
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


PREPROCESSING = Preprocessing((SIDE, SIDE), "imagenet")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_in_order_with_bad_ones_named(tmp_path: Path, workers: int):
    images = pictures(9)
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    (tmp_path / "4.png").write_bytes(png(images[4])[:200])
    (tmp_path / "8.png").write_bytes(b"<html>")
    groups = [[0, 1, 2], [3, 4], [5, 6, 7], [8]]
    found = list(load_batches(any_images(tmp_path), groups, PREPROCESSING, workers=workers))
    assert [batch.positions for batch in found] == [[0, 1, 2], [3], [5, 6, 7], []]
    assert [list(batch.bad) for batch in found] == [[], [4], [], [8]]
    assert "damaged image" in found[1].bad[4]
    assert found[3].bad[8] == "not an image of a format that is read"
    for batch in found:
        assert batch.images.dtype == np.float32
        assert batch.images.shape == (len(batch.positions), SIDE, SIDE, 3)
        for position, array in zip(batch.positions, batch.images, strict=True):
            np.testing.assert_allclose(array.transpose(2, 0, 1)[None], pixels(images[position]), rtol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_gone_ends_it(tmp_path: Path, workers: int):
    for number, image in enumerate(pictures(3)):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    found = any_images(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(StorageError, match=r"1\.png"):
        list(load_batches(found, [[0], [1], [2]], PREPROCESSING, workers=workers))


def test_leaving_early_ends_the_threads(tmp_path: Path):
    for number, image in enumerate(pictures(6)):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    loading = load_batches(any_images(tmp_path), [[n] for n in range(6)], PREPROCESSING, workers=2)
    next(loading)
    assert any(thread.name.startswith("ckptkit-images") for thread in threading.enumerate())
    loading.close()
    assert not any(thread.name.startswith("ckptkit-images") for thread in threading.enumerate())
