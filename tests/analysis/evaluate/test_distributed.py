"""Two real processes with gloo between them, and what becomes of all when one goes wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptkit.analysis.evaluate.distributed import Group, process_group, world_of_environment
from ckptkit.analysis.evaluate.loop import Progress, StateFile
from ckptkit.base.errors import UsageError
from tests.support.evaluation import IMAGES, Known, class_tree
from tests.support.preloaded import FRAMEWORKS, preloaded
from tests.support.running import REPOSITORY

TIMEOUT = 120
MAIN = "from ckptkit.cli.app import main\nmain()"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def processes(
    *arguments: str | Path,
    world: int = 2,
    preludes: dict[int, str] | None = None,
    cwd: dict[int, Path] | None = None,
) -> list[subprocess.Popen[str]]:
    """Start ``ckptkit`` so many times, as torchrun would."""
    port = str(free_port())
    started = []
    popen = preloaded(*FRAMEWORKS).Popen if hasattr(os, "fork") else subprocess.Popen
    for rank in range(world):
        told = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {
            **os.environ,
            **{key: str(value) for key, value in told.items()},
            "OMP_NUM_THREADS": "1",
        }
        environment["PYTHONPATH"] = str(REPOSITORY)
        started.append(
            popen(
                [sys.executable, "-c", f"{(preludes or {}).get(rank, '')}\n{MAIN}", *map(str, arguments)],
                cwd=(cwd or {}).get(rank, REPOSITORY),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finished(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for all of them at once: code, stdout, stderr by rank."""
    found: list[tuple[int, str, str]] = [(-1, "", "")] * len(started)

    def wait(rank: int, process: subprocess.Popen[str]) -> None:
        out, err = process.communicate(timeout=TIMEOUT)
        found[rank] = (process.returncode, out, err)

    threads = [threading.Thread(target=wait, args=one) for one in enumerate(started)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    for process in started:
        process.kill()
    return found


def evaluation(known: Known, *more: str | Path) -> list[str | Path]:
    return ["eval", known.model, "--data", known.data, "--batch-size", "3", "--workers", "1", "--json", *more]


def test_two_processes_count_as_one(known: Known):
    assert IMAGES % 2 == 1  # no even shares: the last image must be taken once
    first, second = finished(processes(*evaluation(known)))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    report = json.loads(first[1])
    assert report["processes"] == 2
    assert report["images"] == IMAGES
    assert [score["hits"] for score in report["scores"]] == [known.top1, known.top5]
    assert second[1:] == ("", "")


def test_going_on_with_another_number_of_processes(known: Known, tmp_path: Path):
    """Two processes are killed on their way; one goes on from what both had done."""
    prelude = (
        "import os, pathlib, time\n"
        "from ckptkit.analysis.evaluate import loop\n"
        "loop.SAVE_EVERY_S = 0\n"
        "real, left = loop.ranks_of, [2]\n"
        "def ranks_of(*given):\n"
        "    if not left[0]:\n"
        f"        folder = pathlib.Path({str(tmp_path / 'ready')!r})\n"
        "        (folder / os.environ['RANK']).touch()\n"
        "        while len(list(folder.iterdir())) < 2: time.sleep(0.01)\n"
        "        os._exit(9)\n"
        "    left[0] -= 1\n"
        "    return real(*given)\n"
        "loop.ranks_of = ranks_of\n"
    )
    (tmp_path / "ready").mkdir()
    state = tmp_path / "states" / "state.json"
    ended = finished(processes(*evaluation(known, "--state", state), preludes={0: prelude, 1: prelude}))
    assert [code for code, _, _ in ended] == [9, 9], ended
    assert sorted(path.name for path in state.parent.iterdir()) == ["state.json.rank0", "state.json.rank1"]
    ((code, out, err),) = finished(processes(*evaluation(known, "--state", state), world=1))
    assert code == 0, err
    report = json.loads(out)
    assert report["resumed"] == 12  # two batches of three in each of two processes
    assert [score["hits"] for score in report["scores"]] == [known.top1, known.top5]
    assert list(state.parent.iterdir()) == []


@pytest.mark.slow
def test_processes_that_see_other_images_end_with_one_message(known: Known, tmp_path: Path):
    for name, count in (("a", 4), ("b", 5)):
        (tmp_path / name).mkdir()
        class_tree(tmp_path / name / "data", known.images[:count], known.labels[:count])
    started = processes(
        "eval", known.model, "--data", "data", cwd={rank: tmp_path / name for rank, name in enumerate("ab")}
    )
    first, second = finished(started)
    assert (first[0], second[0]) == (2, 2), first[2] + second[2]
    assert [line for line in first[2].splitlines() if line.startswith("error:")] == [
        "error: the processes see different images; all need the same --data and --limit"
    ]
    assert second[1:] == ("", "")


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_and_is_told_by_the_first(known: Known, tmp_path: Path):
    """The disk of the second process refuses."""
    prelude = (
        "from ckptkit.analysis.evaluate.data import Sample\n"
        "from ckptkit.base.errors import StorageError\n"
        "def read(self): raise StorageError(f'{self.path}: input/output error')\n"
        "Sample.read = read\n"
    )
    first, second = finished(processes(*evaluation(known), preludes={1: prelude}))
    assert (first[0], second[0]) == (5, 5), first[2] + second[2]
    (line,) = [line for line in first[2].splitlines() if line.startswith("error:")]
    assert line.startswith("error: process 1: ")
    assert line.endswith("input/output error")
    assert second[1:] == ("", "")


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_the_others_quietly(known: Known):
    prelude = (
        "from ckptkit.analysis.evaluate.data import Sample\n"
        "from ckptkit.base.errors import StorageError\n"
        "def read(self): raise StorageError('disk gone')\n"
        "Sample.read = read\n"
    )
    first, second = finished(processes(*evaluation(known), preludes={0: prelude}))
    assert first[0] == 5
    assert first[2].splitlines()[-1] == "error: disk gone"
    assert second[0] != 0
    assert second[1:] == ("", "")


@pytest.mark.slow
def test_torchrun_starts_it(known: Known):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "ckptkit.cli.app", *map(str, evaluation(known))],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["processes"], report["images"]) == (2, IMAGES)
    assert [score["hits"] for score in report["scores"]] == [known.top1, known.top5]


@pytest.mark.parametrize(("rank", "world"), [("0", "x"), ("2", "2"), ("-1", "2"), ("0", "0"), ("a", "1")])
def test_an_environment_that_says_nonsense(monkeypatch: pytest.MonkeyPatch, rank: str, world: str):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError, match="let torchrun set them"):
        world_of_environment()


def test_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert world_of_environment() == (0, 1)
    with process_group() as group:
        assert (group.rank, group.world) == (0, 1)
        assert group.all_gather("x") == ["x"]
        assert group.broadcast("y") == "y"
        group.check()


def test_processes_without_a_meeting_place(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UsageError, match="start all of them with torchrun"), process_group("cpu"):
        raise AssertionError("it must not begin")


def test_keras_runs_in_one_process(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="one process"), process_group("cpu", "keras"):
        raise AssertionError("it must not begin")


@pytest.mark.parametrize(("images", "world"), [(23, 2), (5, 3), (2, 3), (0, 2)])
def test_shares_take_every_image_once(images: int, world: int):
    shares = [Group(rank, world).share(range(images)) for rank in range(world)]
    assert sorted(image for share in shares for image in share) == list(range(images))


def test_parts_of_earlier_processes_go_when_all_is_done(tmp_path: Path):
    state = StateFile(tmp_path / "s.json", {}, 3, 1)
    state.save(Progress.of(3))
    StateFile(tmp_path / "s.json", {}, 3, 0).remove()
    assert list(tmp_path.iterdir()) == []
