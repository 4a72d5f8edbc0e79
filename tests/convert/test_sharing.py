"""One conversion by several processes: the bytes of one process, whatever is killed, stale or late."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ckptkit.cli.app import main
from ckptkit.formats.detect import open_reader
from tests.convert.test_crash import STEPS
from tests.support.commands import Runner, runner
from tests.support.running import finish, start

ENDINGS = {"safetensors": ".safetensors", "torch": ".bin", "keras": ".weights.h5", "dcp": ".dcp"}

NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child made by fork")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def write_source(path: Path, seed: int = 0) -> Path:
    """Twelve layers, 12 kB each, whose names Keras takes too."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(12):
        tensors[f"layers/dense_{layer}/vars/0"] = random.standard_normal((30, 100)).astype("float32")
        tensors[f"layers/dense_{layer}/vars/1"] = random.standard_normal(7).astype("float16")
    save_file(tensors, path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source.safetensors")


def command(source: Path, folder: Path, to: str, *more: str, size: str = "25kB") -> list[str]:
    """Six shards of two layers each."""
    output = folder / f"m{ENDINGS[to]}"
    return ["convert", str(source), "--layout", "as-is", "-o", str(output), "--max-shard-size", size, *more]


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, temporary files too."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def one_process(run: Runner, source: Path, folder: Path, to: str, *more: str) -> dict[str, bytes]:
    folder.mkdir()
    done = run(*command(source, folder, to, *more))
    assert done.code == 0, done.err
    return files(folder)


def opens(folder: Path, to: str) -> bool:
    """Whether a reader would take what is there for a checkpoint."""
    names = {"keras": "m.weights.json", "dcp": "m.dcp/.metadata"}
    return (folder / names.get(to, f"m{ENDINGS[to]}.index.json")).exists()


@pytest.mark.parametrize(
    ("to", "count"), [("safetensors", 3), ("torch", 3), ("torch", 2), ("keras", 2), ("dcp", 3)]
)
def test_processes_at_once_write_the_bytes_of_one(
    run: Runner, source: Path, tmp_path: Path, to: str, count: int
) -> None:
    expected = one_process(run, source, tmp_path / "one", to)
    folder = tmp_path / "several"
    folder.mkdir()
    turns = [f"{number}/{count}" for number in range(1, count + 1)]
    processes = [
        start([*command(source, folder, to), "--shard", turn, "--json"], tmp_path / "home") for turn in turns
    ]
    done = [finish(process) for process in processes]
    assert [code for code, _, _ in done] == [0] * count, done
    assert files(folder) == expected
    assert any(json.loads(out)[0]["complete"] for _, out, _ in done)


@pytest.mark.parametrize("to", ENDINGS)
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_nothing_has_its_name_before_the_last_shard(
    run: Runner, source: Path, tmp_path: Path, to: str, order: tuple[int, int]
) -> None:
    expected = one_process(run, source, tmp_path / "one", to)
    folder = tmp_path / "several"
    first, last = (command(source, folder, to, "--shard", f"{number}/2") for number in order)
    done = run(*first)
    assert (done.code, done.out) == (0, "")
    assert f"--shard {order[0]}/2: 3 of 6 shards written; not written yet: " in done.err
    assert [path.name.startswith(".ckptkit-shards-") for path in folder.iterdir()] == [True]
    done = run(*last)
    assert done.code == 0, done.err
    assert files(folder) == expected
    assert opens(folder, to)
    assert done.out.strip().endswith({"keras": ".weights.json", "dcp": ".dcp"}.get(to, ".index.json"))


WRITES = """
import os, signal

counted, real = [int(os.environ["STEP"])], os.pwrite

def pwrite(*arguments):
    if not counted[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    counted[0] -= 1
    return real(*arguments)

os.pwrite = pwrite
"""
"""Kills the process just before its n-th write into a file."""


def killed_at(arguments: list[str], folder: Path, step: int, prelude: str = STEPS) -> bool:
    """Run a process that is killed before its n-th change of a name in a folder; returns whether it was."""
    child = os.fork()
    if not child:  # without the second that a new process takes to begin
        code = 1
        try:
            os.environ |= {"STEP": str(step), "FOLDER": str(folder)}
            exec(prelude, {})
            with contextlib.suppress(SystemExit):
                main(arguments)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@NEEDS_FORK
@pytest.mark.parametrize(
    "kind",
    [
        "safetensors over an older one",
        pytest.param("safetensors", marks=pytest.mark.slow),
        pytest.param("torch over an older one", marks=pytest.mark.slow),
        "dcp over an older one",
        pytest.param("dcp", marks=pytest.mark.slow),
        pytest.param("keras over an older one", marks=pytest.mark.slow),
    ],
)
def test_killed_before_every_change_of_a_name(run: Runner, source: Path, tmp_path: Path, kind: str) -> None:
    """The last of two processes is killed, and runs again: the other has nothing more to do."""
    to, _, force = kind.partition(" ")
    size = ("--max-shard-size", "75kB")  # two shards
    expected = one_process(run, source, tmp_path / "one", to, *size)
    older = one_process(run, source, tmp_path / "older", to, *size, "--dtype", "float16") if force else {}
    more = (*size, "--force") if force else size
    waiting = tmp_path / "waiting"
    if force:
        shutil.copytree(tmp_path / "older", waiting)
    assert run(*command(source, waiting, to, *more, "--shard", "1/2")).code == 0
    killed, step, seen = True, 0, set()
    while killed:
        folder = tmp_path / "several"  # the same place every time: the digest has the source, not the place
        shutil.copytree(waiting, folder)
        last = command(source, folder, to, *more, "--shard", "2/2")
        killed = killed_at(last, folder, step)
        left = {name: content for name, content in files(folder).items() if not name.startswith(".ckptkit-")}
        if opens(folder, to):
            whole = expected.items() <= left.items()
            assert whole or older.items() <= left.items(), f"step {step}: a mixture"
            seen.add("new" if whole else "old")
        else:
            seen.add("absent")
            assert all(left[name] in (expected.get(name), older.get(name)) for name in left)
        done = run(*last)
        assert done.code == 0, done.err
        again = files(folder)
        assert expected.items() <= again.items(), f"step {step}"
        if "new" not in seen:
            assert again == expected, f"step {step}"
        shutil.rmtree(folder)
        step += 1
    assert step > 4
    assert {"new"} < seen


@NEEDS_FORK
@pytest.mark.parametrize("to", ENDINGS)
@pytest.mark.parametrize("write", [0, 2, 9, 14])
def test_killed_while_it_writes(run: Runner, source: Path, tmp_path: Path, to: str, write: int) -> None:
    """The first of two processes; the second one finds that shards are missing, whenever it runs."""
    folder = tmp_path / "several"
    first, second = (command(source, folder, to, "--shard", f"{number}/2") for number in (1, 2))
    assert killed_at(first, folder, write, WRITES)
    assert all(path.name.startswith(".ckptkit-shards-") for path in folder.iterdir())
    assert run(*second).code == 0
    assert all(path.name.startswith(".ckptkit-shards-") for path in folder.iterdir())
    assert run(*first).code == 0
    assert files(folder) == one_process(run, source, tmp_path / "one", to)


def test_shards_of_another_source_are_not_mixed_in(run: Runner, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "several"
    assert run(*command(source, folder, "safetensors", "--shard", "1/2")).code == 0
    (stale,) = folder.iterdir()
    write_source(source, seed=1)
    done = run(*command(source, folder, "safetensors", "--shard", "2/2"))
    assert done.code == 0
    assert f"{stale} holds shards of another conversion to this name; remove it" in done.err
    assert not opens(folder, "safetensors")
    assert run(*command(source, folder, "safetensors", "--shard", "1/2")).code == 0
    shutil.rmtree(stale)
    assert files(folder) == one_process(run, source, tmp_path / "one", "safetensors")


@pytest.mark.parametrize(
    "other", [("--dtype", "float16"), ("--max-shard-size", "75kB")], ids=lambda other: other[0]
)
def test_shards_of_other_options_are_not_mixed_in(
    run: Runner, source: Path, tmp_path: Path, other: tuple[str, str]
) -> None:
    folder = tmp_path / "several"
    assert run(*command(source, folder, "safetensors", *other, "--shard", "1/2")).code == 0
    assert run(*command(source, folder, "safetensors", "--shard", "2/2")).code == 0
    assert not opens(folder, "safetensors")
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("fault", ["cut off", "removed", "replaced"])
def test_a_waiting_shard_that_changed_is_written_again(
    run: Runner, source: Path, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "several"
    assert run(*command(source, folder, "safetensors", "--shard", "1/2")).code == 0
    (shard, *_) = sorted(folder.glob("*/files/*"))
    if fault == "removed":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1] if fault == "cut off" else bytes(shard.stat().st_size))
    done = run(*command(source, folder, "safetensors", "--shard", "2/2"))
    assert done.code == 0
    assert shard.name in done.err
    assert not opens(folder, "safetensors")
    assert run(*command(source, folder, "safetensors", "--shard", "1/2")).code == 0
    assert files(folder) == one_process(run, source, tmp_path / "one", "safetensors")


def test_tied_tensors_are_in_one_shard_of_one_process(run: Runner, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {f"layers.{layer}.weight": torch.full((30, 100), float(layer)) for layer in range(6)}
    state["head.weight"], state["layers.1.alias"] = state["layers.0.weight"], state["layers.1.weight"]
    source = tmp_path / "source.pth"
    torch.save(state, source)
    expected = one_process(run, source, tmp_path / "one", "torch")
    folder = tmp_path / "several"
    for turn in ("2/2", "1/2"):
        done = run(*command(source, folder, "torch", "--shard", turn))
        assert done.code == 0, done.err
    assert files(folder) == expected
    homes = json.loads((folder / "m.bin.index.json").read_text())["weight_map"]
    assert homes["head.weight"] == homes["layers.0.weight"] == "m-00001-of-00003.bin"
    first = torch.load(folder / "m-00001-of-00003.bin", weights_only=True)
    assert first["head.weight"].data_ptr() == first["layers.0.weight"].data_ptr()
    assert sorted(first) == ["head.weight", "layers.0.weight", "layers.1.alias", "layers.1.weight"]


def test_more_processes_than_shards(run: Runner, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    done = run(*command(source, folder, "dcp", "--shard", "7/8"))
    assert done.code == 0
    assert list(folder.iterdir()) == []
    for number in range(1, 7):
        assert run(*command(source, folder, "dcp", "--shard", f"{number}/8")).code == 0
    assert files(folder) == one_process(run, source, tmp_path / "one", "dcp")


@pytest.mark.parametrize("to", ["safetensors", "dcp"])
def test_an_existing_result(run: Runner, source: Path, tmp_path: Path, to: str) -> None:
    expected = one_process(run, source, tmp_path / "one", to)
    done = run(*command(source, tmp_path / "one", to, "--shard", "1/2"))  # that very one: nothing to do
    assert done.code == 0, done.err
    assert "already up to date" in done.err
    done = run(*command(source, tmp_path / "one", to, "--dtype", "float16", "--shard", "1/2"))
    assert done.code == 2
    assert "exists already; give --force to replace it" in done.err
    assert files(tmp_path / "one") == expected


@pytest.mark.parametrize("to", ["safetensors", "dcp"])
def test_a_result_that_came_meanwhile_is_not_replaced(
    run: Runner, source: Path, tmp_path: Path, to: str
) -> None:
    folder = tmp_path / "several"
    assert run(*command(source, folder, to, "--shard", "1/2")).code == 0
    assert run(*command(source, folder, to, "--dtype", "float16")).code == 0
    there = {name: content for name, content in files(folder).items() if not name.startswith(".ckptkit-")}
    done = run(*command(source, folder, to, "--shard", "2/2"))
    assert done.code == 2
    assert "exists already" in done.err
    assert there.items() <= files(folder).items()
    assert run(*command(source, folder, to, "--shard", "2/2", "--force")).code == 0
    assert files(folder) == one_process(run, source, tmp_path / "one", to)


def test_under_torchrun(run: Runner, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / "several"
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = run(*command(source, folder, "safetensors", "--json"))
        assert (done.code, json.loads(done.out)[0]["shard"]) == (0, f"{int(rank) + 1}/2")
    whole = files(folder)
    assert whole == one_process(run, source, tmp_path / "whole", "safetensors", "--shard", "1/1")
    monkeypatch.delenv("RANK")
    assert whole == one_process(run, source, tmp_path / "one", "safetensors")
    monkeypatch.setenv("RANK", "1")  # a script under torchrun that converts one file by itself
    alone = tmp_path / "alone.safetensors"
    assert run("convert", str(source), "--layout", "as-is", "-o", str(alone)).code == 0
    assert load_file(alone).keys() == load_file(source).keys()


def test_a_rank_that_cannot_be(
    run: Runner, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run(*command(source, tmp_path / "several", "safetensors"))
    assert done.code == 2
    assert done.err == "error: RANK=2 of WORLD_SIZE=2. RANK counts from 0; unset both to convert alone\n"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("m.safetensors",), "needs a result in shards; give --max-shard-size too"),
        (("m.npz", "--max-shard-size", "5MB"), "does not apply to npz"),
        (("-", "--to", "safetensors", "--max-shard-size", "5MB"), "that all processes share"),
        (("s3://b/m.safetensors", "--max-shard-size", "5MB"), "that all processes share"),
    ],
)
def test_what_cannot_be_shared(run: Runner, source: Path, more: tuple[str, ...], says: str) -> None:
    output, *others = more
    where = output if output == "-" or "://" in output else str(source.with_name(output))
    done = run("convert", str(source), "--layout", "as-is", "--shard", "1/2", "-o", where, *others)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def sparse(path: Path, tensors: int, rows: int) -> int:
    """A safetensors file of zeros that takes no room; returns its size."""
    size = rows * 4096 * 2
    table = {
        f"model.layers.{number}.weight": {
            "dtype": "BF16",
            "shape": [rows, 4096],
            "data_offsets": [number * size, (number + 1) * size],
        }
        for number in range(tensors)
    }
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + tensors * size)
    return tensors * size


def measured(arguments: list[str], home: Path) -> tuple[dict[str, object], int]:
    """Run a command; returns its JSON, and the most memory that it had at once, in bytes.

    As Linux counts it for the program: ru_maxrss begins with what the process that started it had.
    """
    code = (
        "import sys\nfrom ckptkit.cli.app import main\n"
        "try:\n    main()\nfinally:\n"
        "    status = open('/proc/self/status').read()\n"
        "    print(status.partition('VmHWM:')[2].split()[0], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json"],
        env={**os.environ, "CKPTKIT_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    (outcome,) = json.loads(done.stdout)
    return outcome, int(done.stderr.split()[-1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_large_checkpoint_is_planned_in_little_memory(tmp_path: Path) -> None:
    source = tmp_path / "large.safetensors"
    total = sparse(source, 1000, 24_576)
    assert total > 200e9
    to = command(source, tmp_path, "safetensors", "--shard", "1/8", "--dry-run", size="5GB")
    planned, peak = measured(to, tmp_path / "home")
    assert (planned["shard"], planned["tensors"]) == ("1/8", 144)  # six of its 42 shards have 24 each
    assert planned["bytes"] == 144 * total // 1000
    assert peak < 200e6


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_share_of_a_sparse_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "sparse.safetensors"
    sparse(source, 100, 1000)  # 819 MB
    to = command(source, tmp_path, "safetensors", "--shard", "2/8", size="20MB")
    written, peak = measured(to, tmp_path / "home")
    assert (written["complete"], written["tensors"]) == (False, 14)  # two each in 7 of 50 shards
    shards = sorted(tmp_path.glob(".ckptkit-shards-*/files/*"))
    assert [path.name for path in shards] == [f"m-{n + 1:05d}-of-00050.safetensors" for n in range(1, 50, 8)]
    assert sum(path.stat().st_size for path in shards) > 14 * 1000 * 8192
    with open_reader(shards[0]) as reader:
        assert list(reader.specs) == ["model.layers.2.weight", "model.layers.3.weight"]
    assert peak < 200e6
