"""Drawings of four things, and a MogaNet that tells them apart: what the documentation's heat map shows.

Nobody's trained weights are needed: the weights are synthetic, and only the head is fitted, to drawings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

import ckptkit
from ckptkit.models.images.classes import imagenet_classes

DRAWINGS, BATCH, SIDE = 240, 20, 160
RIDGE = 10.0
SHARPNESS = 8.0
"""What the fitted values, 0 and 1, are multiplied by to be logits; all other classes have minus as much."""
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def traffic_light(d: Any, x: float, y: float, s: float) -> None:
    """Three lights in a box."""
    d.rounded_rectangle((x - s * 0.4, y - s, x + s * 0.4, y + s), s * 0.15, fill=(30, 30, 34))
    for k, colour in enumerate(((225, 50, 40), (240, 190, 40), (50, 180, 80))):
        cy = y + (k - 1) * s * 0.6
        d.ellipse((x - s * 0.25, cy - s * 0.25, x + s * 0.25, cy + s * 0.25), fill=colour)


def balloon(d: Any, x: float, y: float, s: float) -> None:
    """A balloon on its line."""
    d.line((x, y + s * 0.5, x + s * 0.1, y + s * 1.2), fill=(70, 70, 70), width=2)
    d.ellipse((x - s * 0.6, y - s * 0.8, x + s * 0.6, y + s * 0.6), fill=(205, 60, 120))
    d.ellipse((x - s * 0.35, y - s * 0.55, x - s * 0.1, y - s * 0.2), fill=(240, 160, 200))


def clock(d: Any, x: float, y: float, s: float) -> None:
    """A face with two hands."""
    box = (x - s * 0.8, y - s * 0.8, x + s * 0.8, y + s * 0.8)
    d.ellipse(box, fill=(245, 245, 240), outline=(40, 40, 60), width=max(2, int(s * 0.12)))
    d.line((x, y, x, y - s * 0.55), fill=(40, 40, 60), width=3)
    d.line((x, y, x + s * 0.4, y + s * 0.15), fill=(40, 40, 60), width=3)


def umbrella(d: Any, x: float, y: float, s: float) -> None:
    """An open umbrella."""
    d.pieslice((x - s, y - s * 0.8, x + s, y + s * 1.2), 180, 360, fill=(50, 90, 200))
    d.line((x, y, x, y + s), fill=(60, 50, 40), width=3)
    d.arc((x - s * 0.3, y + s * 0.8, x, y + s * 1.1), 0, 180, fill=(60, 50, 40), width=3)


THINGS = {"traffic light": traffic_light, "balloon": balloon, "analog clock": clock, "umbrella": umbrella}
"""Name of the class in ImageNet → how it is drawn."""


def ground(t: float, side: int) -> Image.Image:
    """Soft colours to draw on."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    waves = [150 + 40 * np.sin(x / 60 + t + k) + 30 * np.cos(y / 45 - t * (k + 1)) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8))


def scene(rng: np.random.Generator, names: Sequence[str]) -> Image.Image:
    """Some things, anywhere, of any size."""
    picture = ground(rng.uniform(0, 6), SIDE)
    pen = ImageDraw.Draw(picture)
    for name in names:
        size = rng.uniform(18, 32)
        THINGS[name](pen, rng.uniform(40, SIDE - 40), rng.uniform(45, SIDE - 45), size)
    return picture


def shown() -> Image.Image:
    """The picture that is explained: a traffic light beside a balloon."""
    picture = ground(1.42, 224)
    pen = ImageDraw.Draw(picture)
    traffic_light(pen, 60, 110, 44)
    balloon(pen, 160, 100, 44)
    return picture


def features(checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head of the model gets for each drawing, and which things are in it."""
    rng = np.random.default_rng(0)
    model = ckptkit.create_model("moganet-xt-224", framework="torch", checkpoint=checkpoint)
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    labels = []
    with torch.inference_mode():
        for _ in range(DRAWINGS // BATCH):
            pictures = []
            for _ in range(BATCH):
                names = [name for name in THINGS if rng.random() < 0.4]
                pixels = np.asarray(scene(rng, names), np.float32) / 255
                pictures.append(((pixels - _MEAN) / _STD).transpose(2, 0, 1))
                labels.append([float(name in names) for name in THINGS])
            model(torch.from_numpy(np.stack(pictures)))
    return torch.cat(seen).double(), torch.tensor(labels).double()


def write_model(folder: Path) -> Path:
    """Write the model: synthetic weights, and a head by ridge regression on the drawings."""
    untrained = ckptkit.synth("moganet-xt-224", folder / "untrained.pth")
    given, labels = features(untrained)
    middle, spread = given.mean(0), given.std(0) + 1e-9
    scaled = (given - middle) / spread
    inverse = scaled.T @ scaled + RIDGE * torch.eye(scaled.shape[1]).double()
    weight = (torch.linalg.solve(inverse, scaled.T @ (labels - labels.mean(0))) / spread[:, None]).T
    bias = labels.mean(0) - weight @ middle
    state = torch.load(untrained, weights_only=True)["state_dict"]
    state["head.fc.weight"].zero_()
    state["head.fc.bias"].fill_(-SHARPNESS)
    classes = [one.name for one in imagenet_classes()]
    for name, row, offset in zip(THINGS, weight, bias - 0.5, strict=True):
        state["head.fc.weight"][classes.index(name)] = (SHARPNESS * row).float()
        state["head.fc.bias"][classes.index(name)] = float(SHARPNESS * offset)
    torch.save({"state_dict": state}, folder / "drawings.pth")
    return folder / "drawings.pth"
