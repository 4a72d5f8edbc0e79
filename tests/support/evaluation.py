"""Small models, pictures and image sets of which the right answers are known.

Right answers are worked out here with the reference model and a few lines of numpy, a picture at a time, none
of the code under test.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit
from ckptkit.models.synth import Synthetic, write_checkpoint

if TYPE_CHECKING:
    from PIL import Image

SIDE = 64
CLASSES = 10
IMAGES = 23
"""Odd, and no multiple of a batch."""
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def small_model(path: Path, variant: str = "moganet-xt", *, without: str = "", **metadata: str) -> Path:
    """Write a checkpoint of ten classes, its biases no recipe's; ``without`` leaves tensors ending so out."""
    source = write_checkpoint(Synthetic(variant), path.with_name(f"{variant}.ckpt"), force=True)
    state = ckptkit.load(source)
    state = {name: array[:CLASSES] if name.startswith("head.") else array for name, array in state.items()}
    kept = {
        name: np.array(array * np.float32(1.05) if name.endswith(".bias") else array, order="C")
        for name, array in state.items()
        if not (without and name.endswith(tuple(without.split())))
    }
    said = {"attn_force_fp32": "true"} if variant.startswith("moganet") else {}
    save_file(kept, path, metadata={"format": "pt", **said, **metadata})
    return path


def pictures(count: int, seed: int = 1) -> list[Image.Image]:
    """Pictures of the input's size, so that no resizing happens; no two alike."""
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    found = []
    for _ in range(count):
        waves = [np.sin(random.uniform(1, 30) * x + random.uniform(1, 30) * y) for _ in range(3)]
        noisy = np.stack(waves, axis=-1) * random.uniform(20, 120) + random.normal(0, 30, (SIDE, SIDE, 3))
        found.append(image.fromarray((noisy + random.uniform(40, 200)).clip(0, 255).astype(np.uint8), "RGB"))
    return found


def pixels(picture: Image.Image) -> np.ndarray:
    """What the model sees of a picture of its size: NCHW, normalized."""
    array = (np.asarray(picture, np.float32) / np.float32(255) - MEAN) / STD
    return array.transpose(2, 0, 1)[None]


def order_of_classes(model: Any, picture: Image.Image) -> list[int]:
    """Classes, the model's best guess first."""
    import torch

    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels(picture)))[0].numpy()
    return np.argsort(-logits).tolist()


def png(picture: Image.Image) -> bytes:
    """A picture's bytes, without loss."""
    body = io.BytesIO()
    picture.save(body, "PNG")
    return body.getvalue()


def class_tree(folder: Path, images: Sequence[Image.Image], labels: Sequence[int]) -> Path:
    """Write a folder for each class, empty ones too."""
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"class{label}" / f"{number:03d}.png").write_bytes(png(image))
    return folder


def shard(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a tar of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


def known_labels(orders: Sequence[Sequence[int]]) -> tuple[list[int], int, int]:
    """Choose a label for each picture; returns them with the top-1 and top-5 hits they make.

    Of five pictures in a row two get the model's best guess, one its fifth, one its sixth and one its last.
    """
    places = [0, 4, 0, 5, CLASSES - 1]
    chosen = [places[number % len(places)] for number in range(len(orders))]
    labels = [order[place] for order, place in zip(orders, chosen, strict=True)]
    return labels, sum(place < 1 for place in chosen), sum(place < 5 for place in chosen)


@dataclass(frozen=True)
class Known:
    """A model, a data set for it, and how many images it gets right."""

    model: Path
    images: list[Image.Image]
    labels: list[int]
    top1: int
    top5: int
    data: Path


def known_model(folder: Path) -> Known:
    """Make a small model and images of which it is known what it answers."""
    pytest.importorskip("torch")
    path = small_model(folder / "small.safetensors", resolution=str(SIDE))
    model = ckptkit.create_model("moganet-xt", checkpoint=path, num_classes=CLASSES)
    images = pictures(IMAGES)
    labels, top1, top5 = known_labels([order_of_classes(model, image) for image in images])
    return Known(path, images, labels, top1, top5, class_tree(folder / "data", images, labels))
