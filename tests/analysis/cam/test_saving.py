"""Files of heat maps: kinds, metadata, and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from ckptkit._version import __version__
from ckptkit.analysis.cam.saving import save_picture
from ckptkit.base.errors import StorageError, UsageError
from tests.analysis.cam.maps import heatmap

Image = pytest.importorskip("PIL.Image")

MAPS = [heatmap(synthetic=True), heatmap(method="layercam", index=3, image_class=None, synthetic=True)]


def save(path: Path, **options: Any) -> Path:
    return save_picture(MAPS[0].picture, MAPS, path, **options)


def test_png_tells_what_it_shows(tmp_path: Path):
    with Image.open(save(tmp_path / "a.png")) as read:
        assert read.format == "PNG"
        assert read.tobytes() == MAPS[0].picture.tobytes()
        assert read.text == {
            "entry": "moganet-xt-224",
            "class": "207 golden retriever; 3 class 3",
            "method": "gradcam; layercam",
            "stage": "stage4",
            "preprocessing": "as published",
            "weights": "synthetic",
            "Software": f"ckptkit {__version__}",
        }


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("b.webp", "WEBP")])
def test_other_kinds_tell_it_in_exif(name: str, kind: str, tmp_path: Path):
    with Image.open(save(tmp_path / name)) as read:
        assert (read.format, read.size) == (kind, (60, 40))
        exif = read.getexif()
        off = numpy.asarray(read.convert("RGB")).astype(int) - numpy.asarray(MAPS[0].picture)
    assert exif[0x0131] == f"ckptkit {__version__}"
    assert exif[0x010E].startswith(
        "entry moganet-xt-224, class 207 golden retriever; 3 class 3, method gradcam"
    )
    assert numpy.abs(off).mean() < 12


def test_paths_stay_at_home_and_any_letter_is_kept(tmp_path: Path):
    maps = [heatmap(name="/home/me/müh/моя.pth")]
    with Image.open(save_picture(maps[0].picture, maps, tmp_path / "a.png")) as read:
        assert read.text["entry"] == "моя.pth"
        assert "weights" not in read.text


def test_an_existing_file_stays(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        save(path)
    assert path.read_bytes() == b"mine"
    save(path, force=True)
    with Image.open(path) as read:
        read.load()
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_no_such_kind(name: str, tmp_path: Path):
    with pytest.raises(UsageError, match=r"no picture ends so; end it with \.png, \.jpg"):
        save(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        save(tmp_path / "file" / "a.png")


def test_the_same_maps_give_the_same_bytes(tmp_path: Path):
    assert save(tmp_path / "a.png").read_bytes() == save(tmp_path / "b.png").read_bytes()
