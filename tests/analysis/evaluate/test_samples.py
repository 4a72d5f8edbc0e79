"""Samples: spread over the classes, the same each time; sets that tell when they changed."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from ckptkit.analysis.evaluate.folders import any_images
from ckptkit.analysis.evaluate.samples import Sample, image_set, stratified
from ckptkit.base.errors import FormatError, StorageError

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


def test_the_same_images_of_other_classes_are_another_set():
    one = image_set([Sample("a", Path("x"), 1)], [], "here")
    assert image_set([Sample("a", Path("x"), 2)], [], "here").identity != one.identity


def test_one_name_for_two_images_is_refused():
    with pytest.raises(FormatError, match="a is there twice"):
        image_set([Sample("a", Path("x"), 1), Sample("a", Path("y"), 2)], [], "here")


def test_reading_a_part_of_a_file(tmp_path: Path):
    path = tmp_path / "shard"
    path.write_bytes(b"0123456789")
    assert Sample("a", path, 1, 3, 4).read() == b"3456"
    assert Sample("a", path).read() == b"0123456789"
    with pytest.raises(FormatError, match="the shard ends inside the image"):
        Sample("a", path, 1, 8, 4).read()
    with pytest.raises(StorageError):
        Sample("a", tmp_path / "none").read()
