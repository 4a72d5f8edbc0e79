"""``ckptkit convert`` killed by SIGKILL: the target is absent or whole, and the next run tidies up."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest

from ckptkit.formats.detect import open_reader
from ckptkit.formats.names import EXTENSIONS
from tests.support.running import finish, start

TARGETS = {
    "safetensors": ["--to", "safetensors"],
    "sharded": ["--to", "safetensors", "--max-shard-size", "6MB"],
    "torch": ["--to", "torch"],
    "tf": ["--to", "tf"],
    "npz": ["--to", "npz"],
    "keras": ["--to", "keras"],
    "sharded Keras": ["--to", "keras", "--max-shard-size", "6MB"],
}
SEVERAL_FILES = {"sharded", "sharded Keras", "tf"}
"""No rename replaces two files at once: over an older target these may also end absent, but never mixed."""


@dataclass(frozen=True)
class Job:
    """A conversion, what it writes when nobody disturbs it, and how long that takes."""

    name: str
    source: Path
    home: Path
    whole: Path
    older: Path
    seconds: float

    @cached_property
    def digests(self) -> dict[str, str]:
        return digests(self.whole)

    def command(self, folder: Path, *more: str) -> list[str]:
        extension = EXTENSIONS[TARGETS[self.name][1]]
        return ["convert", str(self.source), *TARGETS[self.name], "-o", str(folder / f"m{extension}"), *more]

    def begin(self, folder: Path, *more: str, prelude: str = "") -> subprocess.Popen[str]:
        return start(self.command(folder, *more), self.home, prelude, fork=True)


def digests(folder: Path) -> dict[str, str]:
    """Every visible file and its sha256."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith(".ckptkit-")
    }


def temporary(folder: Path) -> list[Path]:
    return list(folder.glob(".ckptkit-*"))


@pytest.fixture(scope="module")
def jobs(bundles, tmp_path_factory) -> dict[str, Job]:
    """Of every target, an undisturbed result, and an older one with other content."""
    made = {}
    for name in TARGETS:
        home, whole, older = (
            tmp_path_factory.mktemp(f"{name}-{what}") for what in ("home", "whole", "older")
        )
        job = Job(name, bundles["plain"], home, whole, older, 0.0)
        for folder, more in ((older, ["--dtype", "float16"]), (whole, [])):
            before = time.monotonic()
            code, _, err = finish(job.begin(folder, *more))
            assert code == 0, err
            assert temporary(folder) == []
        made[name] = replace(job, seconds=time.monotonic() - before)
        assert digests(older) != digests(whole)
    return made


def put_older(folder: Path, job: Job) -> dict[str, str]:
    """Put the older result at the target's place."""
    shutil.copytree(job.older, folder, dirs_exist_ok=True)
    return digests(folder)


def kill_at(process: subprocess.Popen[str], folder: Path, moment: float, *, writing: bool) -> None:
    """SIGKILL after ``moment`` seconds; counted from the first temporary file on if ``writing``."""
    if writing:
        while process.poll() is None and not temporary(folder):
            time.sleep(0.0005)
    end = time.monotonic() + moment
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def is_whole(folder: Path, expected: dict[str, str]) -> bool:
    return expected.items() <= digests(folder).items()


def openable(folder: Path, job: Job) -> bool:
    """Whether there is anything that a reader would take for a checkpoint."""
    target = Path(job.command(folder)[-1])
    marks = {
        "tf": target.with_name(target.name + ".index"),
        "sharded": target.with_name("m.safetensors.index.json"),
        "sharded Keras": target.with_name("m.weights.json"),
    }
    return marks.get(job.name, target).exists()


def judge(folder: Path, job: Job, old: dict[str, str] | None) -> str:
    """Which of the allowed states a killed conversion left; fails on any other."""
    if is_whole(folder, job.digests):
        return "new"
    if old and is_whole(folder, old) and openable(folder, job):
        return "old"
    assert not openable(folder, job), f"{sorted(digests(folder))} is neither whole nor absent"
    assert old is None or job.name in SEVERAL_FILES, "the older target is gone"
    return "absent"


def assert_next_run_tidies_up(folder: Path, job: Job, old: dict[str, str] | None) -> None:
    code, _, err = finish(job.begin(folder, "--force"))
    assert code == 0, err
    assert temporary(folder) == []
    left = set(digests(folder)) - set(old or {})
    assert left == set(job.digests) - set(old or {})
    assert is_whole(folder, job.digests)
    assert openable(folder, job)


def moments(count: int, seed: int) -> Iterator[tuple[str, float, bool, bool]]:
    """Target, moment as a share of the time it takes, counted while writing, over an older one."""
    source = random.Random(seed)
    names = list(TARGETS)
    for number in range(count):
        writing, over_older = source.random() < 0.75, source.random() < 0.4
        yield names[number % len(names)], source.random(), writing, over_older


def killed_once(jobs: dict[str, Job], folder: Path, moment: tuple[str, float, bool, bool]) -> str:
    name, share, writing, force = moment
    job = jobs[name]
    old = put_older(folder, job) if force else None
    process = job.begin(folder, *(["--force"] if force else []))
    kill_at(process, folder, share * job.seconds * (0.5 if writing else 1.0), writing=writing)
    state = judge(folder, job, old)
    assert_next_run_tidies_up(folder, job, old)
    return state


@pytest.mark.parametrize(
    "moment", list(moments(8, seed=1)), ids=lambda moment: f"{moment[0]}-{moment[1]:.2f}"
)
def test_killed_at_a_random_moment(jobs: dict[str, Job], tmp_path: Path, moment) -> None:
    killed_once(jobs, tmp_path, moment)


@pytest.mark.slow
def test_killed_at_a_hundred_random_moments(jobs: dict[str, Job], tmp_path: Path) -> None:
    states = []
    for number, moment in enumerate(moments(100, seed=2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        states.append(killed_once(jobs, folder, moment))
    print({state: states.count(state) for state in set(states)})
    assert {"new", "old", "absent"} <= set(states), "the moments were all too early or all too late"


STEPS = """
import os, signal, sys
from pathlib import Path

counted = [int(os.environ["STEP"])]

def step(real):
    def call(*arguments, **named):
        if str(arguments[0]).startswith(os.environ["FOLDER"]):
            if not counted[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            counted[0] -= 1
        return real(*arguments, **named)
    return call

Path.replace, Path.unlink, Path.rename = step(Path.replace), step(Path.unlink), step(Path.rename)
os.replace, os.rename, os.unlink = step(os.replace), step(os.rename), step(os.unlink)
"""
"""Kills the process just before its n-th change of a name in the target's folder."""


@pytest.mark.parametrize(
    ("name", "force"),
    [
        pytest.param(
            name,
            force,
            id=f"{name}-{'over an older one' if force else 'fresh'}",
            marks=[] if force and name in {"sharded", "tf"} else pytest.mark.slow,
        )
        for name in TARGETS
        for force in (False, True)
    ],
)
def test_killed_before_every_change_of_a_name(
    jobs: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, force: bool
) -> None:
    """The moments that matter most last microseconds: these are all of them."""
    job = jobs[name]
    states, number, killed = [], 0, True
    while killed:
        folder = tmp_path / str(number)
        folder.mkdir()
        old = put_older(folder, job) if force else None
        monkeypatch.setenv("STEP", str(number))
        monkeypatch.setenv("FOLDER", str(folder))
        code, _, err = finish(job.begin(folder, *(["--force"] if force else []), prelude=STEPS))
        killed = code == -signal.SIGKILL
        assert killed or code == 0, err
        state = judge(folder, job, old)
        if killed and number == 0 and not force:
            assert state == "absent"
        states.append(state)
        if number:  # the first one is gone on with, below
            shutil.rmtree(folder)
        number += 1
    assert len(states) > 1, "no change of a name was seen"
    assert states[-1] == "new"
    first_new = states.index("new")
    assert set(states[first_new:]) == {"new"}, "once it stands, it stays"
    assert_next_run_tidies_up(tmp_path / "0", job, digests(tmp_path / "0") if force else None)


def test_what_stands_can_be_opened(jobs: dict[str, Job]) -> None:
    """The digests above are those of checkpoints, not of rubbish that is the same every time."""
    for name, job in jobs.items():
        with open_reader(job.whole if "sharded" in name else Path(job.command(job.whole)[-1])) as reader:
            assert len(reader.specs) > 100
            assert all(reader.read(one).shape == spec.shape for one, spec in reader.specs.items())
