"""Image folders: which class each folder is, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ckptkit.analysis.evaluate.opening import open_images
from ckptkit.base.errors import FormatError, NotFoundError, StorageError, UsageError

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
    with pytest.raises(UsageError, match=r"cats, dogs of its 3 folders are not classes of ImageNet-1K"):
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
    with pytest.raises(UsageError, match="--class-order is for class folders"):
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
    assert "1 images have none" in open_images([data], 1000, labels=labels).rule


@pytest.mark.parametrize(
    ("line", "classes", "said"),
    [
        ("490", 1000, "no name and class"),
        ("a.jpg 1000", 1000, r"line 1: class 1000 for a model of 1,000 classes \(0 to 999\)"),
        ("a.jpg -1", 1000, "'-1' is no class"),
        ("a.jpg tench", 1000, "'tench' is no class"),
        (f"a.jpg {RETRIEVER}", 10, "is no class"),
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
    with pytest.raises(NotFoundError, match=r"0.jpg, 1.jpg, 2.jpg and 2 more of .* not there"):
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
    with pytest.raises(UsageError, match="stands alone"):
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
