"""Loading ahead: the same batches in the same order whatever the threads, and bad images by name."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from ckptkit.analysis.evaluate.folders import any_images
from ckptkit.analysis.evaluate.loading import load_batches
from ckptkit.base.errors import StorageError
from ckptkit.models.images.preprocessing import Preprocessing
from tests.support.evaluation import SIDE, pictures, pixels, png

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
