"""Files as the training codes publish them, written here by real torch: every container, every protocol.

What they say beside the weights comes out as plain text, and nothing that they name is imported or called.
"""

from __future__ import annotations

import collections
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ckptkit.formats.detect import open_reader
from ckptkit.formats.torch_reader import TorchReader
from tests.support.commands import runner
from tests.support.published_files import (
    CLASSES,
    CONFIG,
    MODULE,
    mmcv_meta,
    timm_args,
    training_code,
    with_numpy_core,
)
from tests.support.running import REPOSITORY

FORMS = ["zip", "legacy"]
PROTOCOLS = [2, 3, 4, 5]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(tmp_path)
    yield training_code(tmp_path, tmp_path / "canary")
    sys.modules.pop(MODULE, None)


def save(torch: Any, value: object, path: Path, form: str, protocol: int = 2) -> Path:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    return path


def model(torch: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


def trained(torch: Any, network: Any) -> Any:
    """An optimizer with state: integers as keys, tensors and 0-d tensors inside."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def assert_same(reader: Any, state: Any) -> None:
    """Names in order, shapes, element types and bytes."""
    assert list(reader.specs) == list(state)
    for name, theirs in state.items():
        ours = reader.read(name)
        assert ours.shape == tuple(theirs.shape), name
        assert ours.tobytes() == theirs.detach().contiguous().numpy().tobytes(), name


# -- mmcv ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("written", list(itertools.product(FORMS, PROTOCOLS)), ids=str)
def test_mmcv(torch: Any, code: ModuleType, tmp_path: Path, written: tuple[str, int], core: str) -> None:
    form, protocol = written
    network = model(torch)
    meta, said = mmcv_meta(torch, code)
    saved = {
        "meta": meta,
        "state_dict": network.state_dict(),
        "optimizer": collections.OrderedDict(trained(torch, network).state_dict()),
    }
    path = save(torch, saved, tmp_path / "epoch_300.pth", form, protocol)
    path.write_bytes(with_numpy_core(path.read_bytes(), core))
    assert f"{core}.multiarray".encode() in path.read_bytes()
    (tmp_path / "canary").unlink()
    with open_reader(path) as reader:
        assert isinstance(reader, TorchReader)
        assert_same(reader, network.state_dict())
        found = dict(reader.extras)
    assert {key: text for key, text in found.items() if key.startswith("meta.")} == said
    assert found["optimizer.state"] == "table of 6 values"
    assert found["optimizer.param_groups"].startswith("[{lr: 1e-05, betas: (0.9, 0.999), eps: 1e-08")
    assert "params: [0, 1, 2, 3, 4, 5]}]" in found["optimizer.param_groups"]
    assert not (tmp_path / "canary").exists()


def test_members_of_enumerations(torch: Any, code: ModuleType, tmp_path: Path) -> None:
    """Python versions pickle them by value or by name."""
    saved = {"w": {"w": torch.ones(1)}, "policy": code.Policy.COSINE}
    with TorchReader(save(torch, saved, tmp_path / "m.pth", "zip")) as reader:
        assert f"{MODULE}.Policy" in reader.extras["policy"]
        assert "cosine" in reader.extras["policy"].lower()


CHILD = """
import sys
from ckptkit.cli.app import main
try:
    main(sys.argv[2:])
except SystemExit as stop:
    code = stop.code
names = sorted({name.partition(".")[0] for name in sys.modules})
open(sys.argv[1], "w").write(repr((code or 0, names)))
"""


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_the_file_is_imported(torch: Any, code: ModuleType, tmp_path: Path, form: str) -> None:
    """In a process of its own, which could import the training code: that would leave a mark."""
    meta, _ = mmcv_meta(torch, code)
    saved = {"meta": meta, "state_dict": model(torch).state_dict(), "args": code.ConfigDict(lr=1)}
    path = save(torch, saved, tmp_path / "m.pth", form)
    canary = tmp_path / "canary"
    canary.unlink()
    environment = {
        "PYTHONPATH": f"{tmp_path}:{REPOSITORY}",
        "PATH": "",
        "CKPTKIT_HOME": str(tmp_path / "home"),
    }

    def child(*command: str) -> str:
        run = subprocess.run(
            [sys.executable, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return run.stdout

    shown = child("-c", CHILD, str(tmp_path / "report"), "inspect", str(path))
    status, names = eval((tmp_path / "report").read_text())
    assert status == 0
    assert not {MODULE, "torch"} & set(names)
    assert not canary.exists()
    assert f"also holds  args: {MODULE}.ConfigDict\n" in shown
    child("-c", f"import {MODULE}")
    assert canary.exists()  # so the absence above means something


def test_averages_as_buffers(torch: Any, tmp_path: Path) -> None:
    """mmcv's EMA hook registers one buffer a parameter, dots as underscores; they stand first."""
    network = model(torch)
    twins = {f"ema_{name.replace('.', '_')}": p.detach() + 1 for name, p in network.named_parameters()}
    state = collections.OrderedDict({**twins, **network.state_dict()})
    saved = {"meta": {"epoch": 1}, "state_dict": state}
    with open_reader(save(torch, saved, tmp_path / "ema.pth", "zip")) as reader:
        assert_same(reader, state)
        assert next(iter(reader.specs)) == "ema_0_weight"


# -- timm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", FORMS)
def test_timm(torch: Any, tmp_path: Path, form: str, protocol: int, prefix: str) -> None:
    raw, averages = model(torch, 1), model(torch, 2)
    args, said = timm_args()
    saved = {
        "epoch": 299,
        "arch": "moganet_xtiny",
        "state_dict": {prefix + name: tensor for name, tensor in raw.state_dict().items()},
        "optimizer": trained(torch, raw).state_dict(),
        "version": 2,
        "args": args,
        "amp_scaler": torch.amp.GradScaler("cpu").state_dict(),
        "state_dict_ema": {prefix + name: tensor for name, tensor in averages.state_dict().items()},
        "metric": np.float64(76.48),
    }
    path = save(torch, saved, tmp_path / "model_best.pth.tar", form, protocol)
    for weights, network in {"raw": raw, "ema": averages, "auto": averages}.items():
        with open_reader(path, weights=weights) as reader:
            assert_same(reader, network.state_dict())
    with TorchReader(path) as reader:
        assert reader.state_dicts == ("state_dict", "state_dict_ema")
        assert any("'module.'" in note for note in reader.notes) == bool(prefix)
        found = dict(reader.extras)
    assert {key: text for key, text in found.items() if key.startswith("args")} == said
    assert (found["epoch"], found["arch"], found["version"]) == ("299", "moganet_xtiny", "2")
    assert found["metric"] == "76.48"
    assert found["amp_scaler.scale"] == "65536.0"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extracted", ["ema_only", "bare"])
def test_extracted(torch: Any, tmp_path: Path, form: str, extracted: str) -> None:
    network = model(torch)
    beside = {"arch": "moganet_xtiny", "metric": 76.5, "author": "somebody"}
    saved = (
        {"state_dict": network.state_dict(), **beside} if extracted == "ema_only" else network.state_dict()
    )
    path = save(torch, saved, tmp_path / "m.pth", form)
    with TorchReader(path) as reader:
        assert_same(reader, network.state_dict())
        assert reader.weights is None
        assert dict(reader.extras) == (
            {key: str(value) for key, value in beside.items()} if extracted == "ema_only" else {}
        )


@pytest.mark.parametrize("protocol", [1, *PROTOCOLS])
def test_zip_of_every_protocol_that_torch_writes(torch: Any, tmp_path: Path, protocol: int) -> None:
    network = model(torch)
    path = save(torch, {"state_dict": network.state_dict(), "lr": 0.5}, tmp_path / "m.pth", "zip", protocol)
    with TorchReader(path) as reader:
        assert_same(reader, network.state_dict())
        assert dict(reader.extras) == {"lr": "0.5"}


# -- what people see -----------------------------------------------------------------------------------------


def test_inspect_shows_a_configuration_as_its_lines(
    torch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "\n".join(f"line {k}" for k in range(100))
    saved = {
        "state_dict": model(torch).state_dict(),
        "meta": {"config": CONFIG, "log": long, "CLASSES": CLASSES},
    }
    path = save(torch, saved, tmp_path / "m.pth", "zip")
    run = runner(capsys)
    lines = run("inspect", path, "--summary").out.splitlines()
    start = lines.index("also holds  meta.config:")
    assert lines[start + 1 : start + 4] == [" " * 16 + line for line in CONFIG.splitlines()]
    assert " " * 16 + "line 11" in lines
    assert " " * 16 + "… and 88 more lines; --verbose shows all" in lines
    assert " " * 16 + "line 99" in run("inspect", path, "--summary", "--verbose").out.splitlines()
    assert json.loads(run("inspect", path, "--json").out)["extras"]["meta.log"] == long


SEEN = {
    "moga_xtiny_openmixup.pth": (
        "also holds  meta.exp_name: moga_small_ema_sz224_8xb128_ep300.py",
        "also holds  meta.CLASSES: (class_0, class_1, class_2)",
        "                    backbone=dict(type='MogaNet', arch='x-tiny', attn_force_fp32=True))",
        "                Python: 3.8.13",
    ),
    "moga_xtiny_openmixup_published.pth": (
        "also holds  meta.epoch: 300",
        "also holds  meta.iter: 375600",
        "also holds  meta.config:",
    ),
    "moga_xtiny_openmixup_ema.pth": (
        "also holds  meta.hook_msgs: {best_score: 76.48, last_ckpt: epoch_300.pth}",
        "also holds  meta.config: model = dict(type='MixUpClassification')",
        "also holds  optimizer.state: table of 1 value",
    ),
    "moganet_xtiny_timm.pth.tar": (
        "also holds  epoch: 299",
        "also holds  arch: moganet_xtiny",
        "also holds  args.model_ema_decay: 0.9999",
        "also holds  amp_scaler.scale: 65536.0",
        "also holds  metric: 76.48",
    ),
}


@pytest.mark.parametrize("file", SEEN)
def test_inspect_of_the_published_files(
    shared_folder: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = runner(capsys)("inspect", shared_folder / "checkpoints" / file, "--summary")
    assert ran.code == 0
    assert set(SEEN[file]) <= set(ran.out.splitlines())
    assert max(map(len, ran.out.splitlines())) < 1000
