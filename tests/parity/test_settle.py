"""``rules suggest --prove``: outputs decide which is which where neither names nor sizes do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptkit.api.environment import workspace_of_environment
from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.compare.suggesting import Suggestion, SuggestRequest, suggest_rules
from ckptkit.parity import any_model
from ckptkit.parity.settle import settle
from ckptkit.parity.sides import SideProcess
from ckptkit.rules.file import load_rules
from tests.support.cases import side, sides_run_here, write_case
from tests.support.commands import runner

LEFT, RIGHT = ["ga", "bu", "zo", "meu", "kif", "tor"], ["wem", "dys", "lap", "hin", "vox", "pel"]
"""Queries, keys, values, output, and two norms."""
NETS = f"""
import os

import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, names, made, eps):
        super().__init__()
        self.names = names
        for name in made:
            setattr(self, name, nn.Linear(8, 8) if name in names[:4] else nn.LayerNorm(8, eps))

    def forward(self, x):
        q, k, v, out, before, after = (getattr(self, name) for name in self.names)
        y = before(x)
        weights = (q(y) @ k(y).transpose(-1, -2)).softmax(-1)
        return after(x + out(weights @ v(y)))

class Net(nn.Module):
    def __init__(self, names, made=None, eps=1e-5):
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.blocks = nn.Sequential(*(Block(names, made or names, eps) for _ in range(2)))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))

class Sum(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.LayerNorm(3))

    def forward(self, x):
        return sum(getattr(self, name)(x) for name in self.names)

class Chain(nn.Module):
    def __init__(self, names, step):
        super().__init__()
        self.names = names
        for name in sorted(names):
            setattr(self, name, nn.Linear(8, 8))
        self.stages = nn.ModuleList(nn.Identity() for _ in names[::step])

    def forward(self, x):
        x = x.repeat(1, 1, 3)[..., :8]
        for n, name in enumerate(self.names):
            x = getattr(self, name)(x).tanh()
            if (n + 1) % (len(self.names) // len(self.stages)) == 0:
                x = self.stages[n * len(self.stages) // len(self.names)](x)
        return x

def chain_left(): return Chain([*"abcdefgh"], 1)
def chain_right(): return Chain([*"sponymux"], 1)
def pairs_left(): return Chain([*"abcdef"], 2)
def pairs_right(): return Chain([*"yxpszq"], 2)
def left(): return Net({LEFT})
def right(): return Net({RIGHT})
def shuffled(): return Net({RIGHT}, {sorted(RIGHT)})
def wrong(): return Net({RIGHT}, eps=1.0)
def sum_left(): return nn.Sequential(Sum(["ga", "bu"]))
def sum_right(): return nn.Sequential(Sum(["wem", "dys"]))

class OnlyOnce(Sum):
    ran = False

    def forward(self, x):
        if OnlyOnce.ran:
            os._exit(7)
        OnlyOnce.ran = True
        return super().forward(x)

def only_once(): return nn.Sequential(OnlyOnce(["wem", "dys"]))
"""
STAGES = ["stem", "blocks.0", "blocks.1", "head"]
INPUTS = "{shape: [2, 6, 3], seed: 3}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Models whose names say nothing, and random weights of the left one."""
    torch = pytest.importorskip("torch")
    (tmp_path / "nets.py").write_text(NETS)
    space: dict[str, object] = {}
    exec(compile(NETS, "nets.py", "exec"), space)
    torch.manual_seed(0)
    for name in ("left", "sum_left", "chain_left", "pairs_left"):
        model = space[name]()  # type: ignore[operator]
        state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
        torch.save(state, tmp_path / f"{name}.pth")
    for name in ("right", "shuffled", "wrong", "sum_right", "chain_right", "pairs_right"):
        torch.save(space[name]().state_dict(), tmp_path / f"{name}.pth")  # type: ignore[operator]
    with sides_run_here():
        yield tmp_path


def settled(
    folder: Path, left: str, right: str, stages: object = STAGES, target: str | None = None
) -> tuple[Suggestion, Suggestion]:
    """A draft by names and shapes, and what the outputs make of it."""
    drafted = suggest_rules(
        workspace_of_environment(),
        folder / f"{left}.pth",
        folder / f"{target or right}.pth",
        SuggestRequest(values=False),
    )
    case = write_case(
        folder,
        side("torch", f"nets:{left}", checkpoint=f"{left}.pth"),
        side("torch", f"nets:{right}"),
        stages=stages,
        inputs=INPUTS,
    )
    return drafted, settle(drafted, case)


@pytest.mark.parametrize("right", ["right", "shuffled"])
def test_queries_keys_values_and_norms_are_told_apart(folder: Path, right: str) -> None:
    """The norms are asked about, the matrices guessed by their order: wrongly where that is another one.

    Stem and head are guessed by their names, which both sides have.
    """
    drafted, found = settled(folder, "left", right)
    assert not drafted.ok
    assert (drafted.tensors["ambiguous"], drafted.tensors["guessed"]) == (8, 20)
    assert found.ok, found.text
    untested = 2 if right == "right" else 0  # a bias of keys adds the same to all of a softmax
    assert found.tensors["proven"] == 28 - untested
    words = "# the outputs do not test blocks.0.dys.bias, blocks.1.dys.bias\n"
    assert (words in found.text) == bool(untested)
    assert re.search(r"all \d outputs agree, largest relative difference \d\.\de[-+]\d\d; ", found.text)
    path = folder / "rules.yaml"
    found.write(path)
    made = {
        (source, target)
        for rule in load_rules(path).rules
        for source, target in zip(LEFT, RIGHT, strict=True)
        for values in [rule.source.values(f"blocks.1.{source}.weight")]
        if values is not None and rule.target.fill(values) == f"blocks.1.{target}.weight"
    }
    assert made == set(zip(LEFT, RIGHT, strict=True))


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "step"),
    [("chain", "abcdefgh", "sponymux", 1), ("pairs", "abcdef", "yxpszq", 2)],
)
def test_many_layers_of_one_size_are_put_in_order(
    folder: Path, kind: str, ours: str, theirs: str, step: int
) -> None:
    """Eight with a stage each, and six with a stage for every two."""
    stages = [f"stages.{n}" for n in range(len(ours) // step)]
    _, found = settled(folder, f"{kind}_left", f"{kind}_right", stages)
    assert found.tensors["proven"] == 2 * len(ours), found.text
    found.write(folder / "rules.yaml")
    rules = load_rules(folder / "rules.yaml")
    made = {
        one: rule.target.fill(values)
        for one in ours
        for rule in rules.rules
        if (values := rule.source.values(f"{one}.weight")) is not None
    }
    assert made == {one: f"{other}.weight" for one, other in zip(ours, theirs, strict=True)}


def test_what_makes_no_difference_stays_open(folder: Path) -> None:
    drafted, found = settled(folder, "sum_left", "sum_right", ["0"])
    assert drafted.tensors["ambiguous"] == found.tensors["ambiguous"] == 4
    assert not found.ok
    assert "0 of 1 question settled" in found.text


def test_a_port_that_computes_something_else_is_named_by_its_stage(folder: Path) -> None:
    _, found = settled(folder, "left", "wrong")
    assert not found.ok
    assert "no answer makes blocks.0 agree" in found.text


def test_a_side_that_dies_proves_nothing(folder: Path) -> None:
    """The first answer agrees; the second is never known, so the first is not the only one."""
    with pytest.MonkeyPatch.context() as patch:  # undone before `folder` undoes its own
        patch.setattr(any_model, "SideProcess", SideProcess)  # real processes
        with pytest.raises(ConversionError, match=r"right \(torch\) ended with status 7"):
            settled(folder, "sum_left", "only_once", ["0"], target="sum_right")


def test_what_cannot_be_filled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner(capsys)
    case = write_case(
        folder, side("torch", "nets:left"), side("torch", "nets:right"), stages=[], inputs=INPUTS
    )
    names = folder / "names.json"
    names.write_text('{"stem.weight": [8, 3]}')
    done = run("rules", "suggest", names, folder / "right.pth", "--prove", case)
    assert (done.code, "has no values to fill a model with" in done.err) == (2, True)
    drafted, _ = settled(folder, "left", "right")
    with pytest.raises(UsageError, match="--prove cannot be used with --strip-prefix"):
        settle(drafted, case, SuggestRequest(strip_prefix="net."))
    recorded = write_case(folder, side("torch", "nets:left"), side("recorded", "names.json"), inputs=INPUTS)
    with pytest.raises(UsageError, match="a recorded side cannot be"):
        settle(drafted, recorded)


def test_the_command_and_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ckptkit

    case = write_case(
        folder,
        side("torch", "nets:left", checkpoint="left.pth"),
        side("torch", "nets:right", checkpoint="not-there-yet.pth"),
        stages=STAGES,
        inputs=INPUTS,
    )
    both = folder / "left.pth", folder / "right.pth"
    rules = folder / "rules.yaml"
    done = runner(capsys)("rules", "suggest", *both, "--prove", case, "-o", rules)
    assert done.code == 0, done.err
    assert re.search(r"all \d outputs agree", done.err)
    assert ckptkit.suggest_rules(*both, prove=case).text == rules.read_text()
