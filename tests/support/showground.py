"""A folder with the files that examples speak of, a cache, and the published hosts on loopback.

The weights are synthetic; pictures are drawn. Each example gets a copy of its own, made of hard links.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

import ckptkit
from ckptkit.models.synth import Synthetic, synthetic_for, write_checkpoint
from ckptkit.registry.loading import load_registry
from ckptkit.registry.schema import Entry
from ckptkit.store.checksum_file import checksum_lines
from ckptkit.store.lockfile import LockFile
from tests.conftest import REPOSITORY
from tests.support.deepspeed_files import Step
from tests.support.http_server import FaultServer, Served, goog_hash

FETCHED = ("tiny-moat0-256", "moganet-xt-224")
"""What lies in the cache when an example begins."""

WNIDS = ("n01440764", "n02099601", "n04285008")


class PublishedFiles(dict[str, Served]):
    """By URL path; an entry's synthetic file is made when it is asked for the first time."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.entries = {
            urlsplit(source.url).path: entry
            for entry in load_registry().values()
            for source in entry.sources
            if not source.manual
        }

    def get(self, path: str, default: object = None) -> Served | None:  # type: ignore[override]
        if path not in self and path in self.entries:
            self[path] = self._synthetic(path, self.entries[path])
        return super().get(path)

    def _synthetic(self, path: str, entry: Entry) -> Served:
        folder = self.folder / entry.id
        folder.mkdir(parents=True, exist_ok=True)
        body = write_checkpoint(synthetic_for(entry), folder / Path(path).name, force=True).read_bytes()
        return Served(body, headers=goog_hash(body))


@contextmanager
def published_hosts(folder: Path, more: Mapping[str, bytes] | None = None) -> Iterator[str]:
    """Serve every published file on loopback, and ``more`` by URL; yields CKPTKIT_MIRROR's value."""
    files = PublishedFiles(folder)
    hosts = sorted({urlsplit(s.url)[:2] for e in load_registry().values() for s in e.sources})
    for url, body in (more or {}).items():
        files[urlsplit(url).path] = Served(body)
    with FaultServer(files=files) as server:
        yield " ".join(f"{scheme}://{host}={server.base}" for scheme, host in hosts)


@dataclass(frozen=True)
class Showground:
    """The files as they lie before an example."""

    folder: Path
    home: Path
    trust: Path

    def copy(self, into: Path) -> Showground:
        """Make the same again elsewhere, without copying bytes."""
        for part in (self.folder, self.home):
            shutil.copytree(part, into / part.name, copy_function=os.link)
        shutil.copyfile(self.trust, into / self.trust.name)
        return Showground(into / self.folder.name, into / self.home.name, into / self.trust.name)


def draw_pictures(folder: Path) -> None:
    """Draw the pictures: discs on slopes of colour, no two alike."""
    places = [folder / "cat.jpg", folder / "dog.png"]
    places += [folder / "images" / f"{n}.jpg" for n in range(3)]
    places += [folder / "imagenet" / "val" / wnid / f"{n}.JPEG" for wnid in WNIDS for n in range(2)]
    for number, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(place, "PNG" if place.suffix == ".png" else "JPEG", quality=92)


def picture(number: int, width: int = 320, height: int = 240):
    """One picture, drawn by numbers."""
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turn = number * 0.7
    slope = [
        127 + 90 * np.sin(x / 60 + turn),
        127 + 90 * np.cos(y / 45 - turn),
        90 + 60 * np.sin((x + y) / 80),
    ]
    pixels = np.stack(slope, axis=-1)
    disc = (x - width * (0.3 + 0.08 * (number % 5))) ** 2 + (y - height * 0.55) ** 2 < (height * 0.27) ** 2
    pixels[disc] = (225, 165 - 20 * (number % 4), 60 + 25 * (number % 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")


def prepare(folder: Path) -> Showground:
    """Make everything; CKPTKIT_HOME, CKPTKIT_TRUST and CKPTKIT_MIRROR must point to where it shall lie."""
    ground = Showground(folder / "work", folder / "home", folder / "ckptkit.lock")
    ground.folder.mkdir(parents=True)
    draw_pictures(ground.folder)
    for id in FETCHED:
        ckptkit.fetch(id)
    _write_checkpoints(ground.folder)
    _write_ruled_model(ground.folder)
    _write_case(ground.folder)
    _write_training_run(ground.folder / "run")
    _write_checksums(ground)
    return ground


def _write_checkpoints(folder: Path) -> None:
    model = write_checkpoint(Synthetic("tiny-moat0"), folder / "model.ckpt")
    ckptkit.convert(model, to="safetensors", output=folder / "moat.safetensors")
    for name in ("a.pth", "b.pth", "published.pth"):
        ckptkit.convert(model, to="torch", output=folder / name)
    ckptkit.convert(folder / "published.pth", to="tf", output=folder / "converted.ckpt")
    ckptkit.convert("moganet-xt-224", to="tf", output=folder / "moganet.ckpt")
    write_checkpoint(synthetic_for(load_registry()["moganet-xt-256"]), folder / "downloaded.pth")
    write_checkpoint(Synthetic("moganet-xt", layout="openmixup"), folder / "my.pth")
    ckptkit.convert("tiny-moat0-256", to="safetensors", output=folder / "converted.safetensors")
    os.link(folder / "a.pth", folder / "model.pth")
    (folder / "mine.yaml").write_text("entries:\n  - id: tiny-moat0-256\n    note: ours\n", encoding="utf-8")


def _write_training_run(folder: Path) -> None:
    """Write what DeepSpeed's ZeRO saves on two ranks."""
    random = np.random.default_rng(11)
    weights = {f"net.{part}": random.normal(size=(6, 5)).astype(np.float32) for part in ("a", "b")}
    Step(stage=2, ranks=2, groups=[weights], prefix="bf16_").write(folder, "global_step1000")


def _write_checksums(ground: Showground) -> None:
    """Write what the lock file knows, as 'cache checksums' does."""
    known = LockFile(ground.trust).everything()
    lines = "".join(f"{line}\n" for line in checksum_lines(known, sorted(known)))
    (ground.folder / "SHA256SUMS").write_text(lines, encoding="utf-8")


def _write_case(folder: Path) -> None:
    """Put the example of a case there, with random weights."""
    for file in (REPOSITORY / "examples" / "case").glob("*.*"):
        shutil.copy(file, folder / file.name)
    runpy.run_path(str(folder / "nets.py"), run_name="__main__")


def _write_ruled_model(folder: Path) -> None:
    """Write README's file of rules, and a model that it fits, on both of its sides."""
    from tests.support.tf_files import write_checkpoint as write_bundle

    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (rules,) = re.findall(r"```yaml\n(version: 2\nrules:.*?)```", readme, re.DOTALL)
    (folder / "my_rules.yaml").write_text(rules, encoding="utf-8")
    random = np.random.default_rng(7)
    shapes = {f"net/block_{i}/conv/kernel": (3, 3, 4, 8) for i in (1, 2)}
    shapes |= {f"{part}/kernel": (6, 6) for part in "qkv"} | {"encoder/scale": (6,)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["global_step"] = np.array(7, np.int64)
    write_bundle(folder / "net.ckpt", arrays)
    ckptkit.convert(folder / "net.ckpt", rules=folder / "my_rules.yaml", output=folder / "ported.pth")
    ruled = ckptkit.load(folder / "ported.pth", layout="as-is")
    (folder / "shapes.json").write_text(json.dumps({name: array.shape for name, array in ruled.items()}))
    (folder / "my_nets.py").write_text(_NET, encoding="utf-8")


_NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, bias=False)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.qkv = nn.Linear(6, 18, bias=False)
        self.scale = nn.Parameter(torch.ones(6))

def build():
    return Net()
"""
