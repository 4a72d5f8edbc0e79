"""Image folders: which class each folder is, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptkit.analysis.evaluate.opening import open_images
from ckptkit.errors import FormatError, NotFoundError, StorageError, UsageError

GOLDFISH, RETRIEVER = "n01443537", "n02099601"  # classes 1 and 207


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def labels_of(folder: Path, classes: int | None = 1000, **options: Path) -> dict[str, int | None]:
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
    with pytest.raises(UsageError, match=r"cats, dogs of its 3 folders are no classes of ImageNet-1K"):
        labels_of(tmp_path)


def test_other_numbers_of_classes_go_by_the_order_of_names(tmp_path: Path):
    tree(tmp_path, "zebra/1.jpg", "ant/2.jpg", "Bee/3.jpg")
    (tmp_path / "cow").mkdir()  # a class without images here
    assert labels_of(tmp_path, 4) == {"Bee/3.jpg": 0, "ant/2.jpg": 1, "zebra/1.jpg": 3}
    assert "order of their names" in open_images([tmp_path], 4).rule
    with pytest.raises(UsageError, match="4 class folders for a model of 10 classes"):
        labels_of(tmp_path, 10)


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
