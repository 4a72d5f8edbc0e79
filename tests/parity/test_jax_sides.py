"""JAX as a side: functions of parameters, and modules of Flax, against the same models in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.parity.any_model import prove_case
from tests.support.cases import side, sides_run_here, write_case

pytest.importorskip("jax")
pytest.importorskip("torch")

CODE = """
import jax
import jax.numpy as jnp
import torch.nn.functional as F
from torch import nn


def forward(parameters, ids):
    x = parameters["embed"]["table"][ids]
    stages = {}
    for i, layer in enumerate(parameters["layers"]):
        x = stages[f"layer{i}"] = jax.nn.gelu(x @ layer["w"] + layer["b"], approximate=False)
    return {**stages, "logits": x.mean(1) @ parameters["head"]}


def words():
    layers = [{"w": jnp.zeros((8, 8)), "b": jnp.zeros(8)} for _ in range(2)]
    embed = {"table": jnp.zeros((50, 8))}
    return jax.jit(forward), {"embed": embed, "layers": layers, "head": jnp.zeros((8, 5))}


def no_parameters():
    return forward


def number():
    return 3, {}


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x.mean(1))}


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, stride=2)
        self.norm = nn.LayerNorm(8, eps=1e-6)

    def forward(self, x):
        x = self.conv(F.pad(x, (0, 1, 0, 1)))
        return F.gelu(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.block0, self.block1, self.head = Block(3), Block(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.block1(self.block0(x)).mean((2, 3)))
"""
FLAX = """
import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2, padding="SAME", name="conv")(x)
        return nn.gelu(nn.LayerNorm(self.epsilon, name="norm")(x), approximate=False)


class Images(nn.Module):
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Block(self.epsilon if i else 1e-6, name=f"block{i}")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def module(epsilon=1e-6):
    images = Images(epsilon)
    return images, images.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def wrong():
    return module(1e-2)


def function():
    images, variables = module()
    return jax.jit(images.apply), variables
"""
RULES = """\
version: 2
rules:
  - {source: "embed/table", target: "embed.weight"}
  - {source: "layers/{i}/w", target: "layers.{i}.0.weight", axes: "i o -> o i"}
  - {source: "layers/{i}/b", target: "layers.{i}.0.bias"}
  - {source: "head", target: "head.weight", axes: "i o -> o i"}
"""
OF_FLAX = """\
version: 2
strip: ["params/"]
rules:
  - {source: "block{i}/conv/kernel", target: "block{i}.conv.weight", axes: "h w i o -> o i h w"}
  - {source: "block{i}/conv/bias", target: "block{i}.conv.bias"}
  - {source: "block{i}/norm/scale", target: "block{i}.norm.weight"}
  - {source: "block{i}/norm/bias", target: "block{i}.norm.bias"}
  - {source: "head/kernel", target: "head.weight", axes: "i o -> o i"}
  - {source: "head/bias", target: "head.bias"}
"""
IDS = "{ids: {shape: [2, 6], dtype: int64, max: 50}}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    random = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {"embed/table": (50, 8), "head": (8, 5)}
    shapes |= {f"layers/{i}/{name}": (8,) * (1 + (name == "w")) for i in range(2) for name in "wb"}
    np.savez(
        tmp_path / "words.npz",
        **{name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()},
    )
    (tmp_path / "port.py").write_text(CODE)
    (tmp_path / "rules.yaml").write_text(RULES)
    with sides_run_here():
        yield tmp_path


JAX = side("jax", "port:words", checkpoint="words.npz")
TORCH = side("torch", "port:Words", checkpoint="words.npz", rules="rules.yaml")


def test_a_function_of_parameters_in_both_directions(folder: Path):
    forwards = write_case(folder, JAX, TORCH, stages={"layer0": "layers.0", "layer1": "layers.1"}, inputs=IDS)
    report = prove_case(forwards)
    assert report.ok, report.verdict
    assert [stage.name for stage in report.stages][-1] == "output.logits"
    assert len(report.stages) == 3
    torch = pytest.importorskip("torch")
    with np.load(folder / "words.npz") as file:
        state = {
            name.replace("embed/table", "embed.weight")
            .replace("/w", ".0.weight")
            .replace("/b", ".0.bias")
            .replace("head", "head.weight")
            .replace("/", "."): torch.tensor(array if name == "embed/table" or array.ndim == 1 else array.T)
            for name, array in file.items()
        }
    torch.save(state, folder / "words.pth")
    jax_side = side("jax", "port:words", checkpoint="words.pth", rules="rules.yaml", reverse=True)
    torch_side = side("torch", "port:Words", checkpoint="words.pth")
    report = prove_case(write_case(folder, torch_side, jax_side, stages={"layers.1": "layer1"}, inputs=IDS))
    assert report.ok, report.verdict


def test_tensors_that_do_not_fit_the_parameters_are_named(folder: Path):
    with np.load(folder / "words.npz") as file:
        arrays = dict(file)
    arrays["layers/0/b"] = np.zeros(9, "f4")
    arrays["extra"] = arrays.pop("head")
    np.savez(folder / "words.npz", **arrays)
    words = r"1 missing: head; 1 unexpected: extra; 1 of another shape: layers/0/b \[9\] instead of \[8\]"
    with pytest.raises(ConversionError, match=words):
        prove_case(write_case(folder, JAX, JAX, stages=None, inputs=IDS))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no_parameters", r"port:no_parameters gives no parameters to fill; return \(function, parameters\)"),
        ("number", "port:number gives int, not a function"),
    ],
)
def test_what_is_no_model_of_jax(model: str, words: str, folder: Path):
    with pytest.raises(UsageError, match=words):
        prove_case(
            write_case(
                folder, side("jax", f"port:{model}", checkpoint="words.npz"), JAX, stages=None, inputs=IDS
            )
        )


@pytest.mark.parametrize("model", ["module", "function", "wrong"])
def test_modules_of_flax_are_stages_compiled_or_not(model: str, folder: Path):
    jax = pytest.importorskip("jax")
    pytest.importorskip("flax")
    (folder / "nets.py").write_text(FLAX)
    space: dict[str, Any] = {}
    exec(compile(FLAX, "nets.py", "exec"), space)
    leaves = jax.tree_util.tree_leaves_with_path(space["module"]()[1])
    random = np.random.default_rng(2)
    np.savez(
        folder / "images.npz",
        **{
            jax.tree_util.keystr(path, simple=True, separator="/"): 0.3 * random.normal(size=leaf.shape)
            for path, leaf in leaves
        },
    )
    (folder / "rules.yaml").write_text(OF_FLAX)
    report = prove_case(
        write_case(
            folder,
            side("torch", "port:Images", checkpoint="images.npz", rules="rules.yaml"),
            side("jax", f"nets:{model}", checkpoint="images.npz"),
            stages={"block0": "block0", "block1.conv": "block1/conv", "block1": "block1"},
        )
    )
    assert [stage.name for stage in report.stages] == [
        "block0",
        "block1.conv ↔ block1/conv",
        "block1",
        "output",
    ]
    assert report.ok == (model != "wrong"), report.verdict
    assert report.first_departure == ("block1" if model == "wrong" else None)
