"""Progress over an interruption: what a state file keeps, and what it is not gone on from."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from ckptkit.analysis.evaluate import progress as module
from ckptkit.analysis.evaluate.progress import Progress, StateFile, default_state_path
from ckptkit.base.errors import StorageError

IDENTITY = {"the data set": "abc", "the settings": "{}"}


def some(images: int = 21) -> Progress:
    progress = Progress.of(images)
    progress.note([0, 5, 20], np.array([0, 4, 5]), {7: "damaged"})
    return progress


def same(one: Progress | None, other: Progress) -> bool:
    return one is not None and one.to_json() == other.to_json()


def test_ranks_make_hits():
    progress = some()
    assert np.flatnonzero(progress.done).tolist() == [0, 5, 7, 20]
    assert np.flatnonzero(progress.top1).tolist() == [0]
    assert np.flatnonzero(progress.top5).tolist() == [0, 5]
    assert progress.good == 3


def test_a_state_file_gives_back_what_was_saved(tmp_path: Path):
    state = StateFile(tmp_path / "deep" / "state.json", IDENTITY, 21)
    assert state.load() == (None, "")
    state.save(some())
    found, why = StateFile(state.path, IDENTITY, 21).load()
    assert same(found, some())
    assert why == ""
    state.remove()
    assert list(state.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({**IDENTITY, "the data set": "other"}, "the data set has changed"),
        ({"the data set": "x", "the settings": "y"}, "the data set and the settings have changed"),
        ({**IDENTITY, "more": "1"}, "more has changed"),
    ],
)
def test_another_identity_begins_anew(tmp_path: Path, identity: dict[str, str], said: str):
    path = tmp_path / "state.json"
    StateFile(path, IDENTITY, 21).save(some())
    assert StateFile(path, identity, 21).load() == (None, said)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["progress"].pop("done"),
        lambda v: v["progress"].update(done="!!"),
        lambda v: v["progress"].update(done=5),
        lambda v: v["progress"].update(images=22),
        lambda v: v["progress"].update(bad=[]),
        lambda v: v["progress"].update(bad={"99": "x"}),
        lambda v: v["progress"].update(bad={"1": "not done"}),
        lambda v: v["progress"].update(bad={"0": "was hit"}),
        lambda v: v["progress"].update(done=v["progress"]["top1"]),
        lambda v: v["progress"].update(top5=base64.b64encode(bytes(3)).decode()),
        lambda v: v["progress"].update(top1=base64.b64encode(bytes(99)).decode()),
        lambda v: v.update(progress=None),
        lambda v: v.update(progress=[1]),
        lambda v: v.update(format=99),
        lambda v: v.update(identity="abc"),
    ],
)
def test_damage_begins_anew(tmp_path: Path, change):
    path = tmp_path / "state.json"
    StateFile(path, IDENTITY, 21).save(some())
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    found, why = StateFile(path, IDENTITY, 21).load()
    assert found is None
    assert "state file" in why


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_no_state_file_at_all(tmp_path: Path, body: bytes):
    path = tmp_path / "state.json"
    path.write_bytes(body)
    found, why = StateFile(path, IDENTITY, 21).load()
    assert found is None
    assert "state file" in why


def test_parts_of_several_processes_are_gathered(tmp_path: Path):
    path = tmp_path / "state.json"
    halves = [Progress.of(9), Progress.of(9)]
    halves[0].note([0, 2, 4], np.array([0, 9, 1]), {})
    halves[1].note([1, 3], np.array([2, 0]), {5: "damaged"})
    for part, half in enumerate(halves):
        StateFile(path, IDENTITY, 9, part).save(half)
    assert not path.exists()
    state = StateFile(path, IDENTITY, 9, 0)
    found, _ = state.load()
    assert found is not None
    assert np.flatnonzero(found.done).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(found.top5).tolist() == [0, 1, 3, 4]
    assert found.bad == {5: "damaged"}
    StateFile(path, IDENTITY, 9).gather(found)
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]
    assert same(StateFile(path, IDENTITY, 9).load()[0], found)


def test_a_part_of_another_set_is_not_mixed_in(tmp_path: Path):
    path = tmp_path / "state.json"
    StateFile(path, {**IDENTITY, "the data set": "old"}, 21, 1).save(some())
    mine = Progress.of(21)
    mine.note([3], np.array([0]), {})
    StateFile(path, IDENTITY, 21).save(mine)
    assert same(StateFile(path, IDENTITY, 21).load()[0], mine)


def test_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = iter([100.0, 104.9, 105.0, 105.0, 109.9])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    state = StateFile(tmp_path / "state.json", IDENTITY, 21)
    state.save_now_and_then(some())
    assert not state.path.exists()
    state.save_now_and_then(some())
    assert state.path.exists()
    state.path.unlink()
    state.save_now_and_then(some())
    assert not state.path.exists()


def test_a_disk_that_refuses_says_so_and_stops_nothing(tmp_path: Path):
    (tmp_path / "file").touch()
    state = StateFile(tmp_path / "file" / "state.json", IDENTITY, 21)
    assert state.load() == (None, "")
    for try_only in (True, False):
        state.refused = None
        state.save(some(), try_only=try_only)
        assert isinstance(state.refused, StorageError)
    state.gather(some())
    state.remove()
    assert (tmp_path / "file").read_bytes() == b""


def test_a_state_file_that_cannot_be_read_begins_anew(tmp_path: Path):
    (tmp_path / "state.json").mkdir()
    found, why = StateFile(tmp_path / "state.json", IDENTITY, 21).load()
    assert found is None and why.startswith("the state file cannot be read")


def test_parts_stay_where_they_cannot_be_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_given: object, **_more: object) -> None:
        raise StorageError("no space left on the disk")

    path = tmp_path / "state.json"
    StateFile(path, IDENTITY, 21, 1).save(some())
    monkeypatch.setattr(module, "StagedFile", full)
    StateFile(path, IDENTITY, 21).gather(some())
    assert [one.name for one in tmp_path.iterdir()] == ["state.json.rank1"]


def test_trying_leaves_nothing(tmp_path: Path):
    state = StateFile(tmp_path / "state.json", IDENTITY, 21)
    state.save(some(), try_only=True)
    assert state.refused is None and list(tmp_path.iterdir()) == []


def test_default_paths_differ_by_choice_and_are_plain_names(tmp_path: Path):
    one = default_state_path(tmp_path, "a/../b c.pth", {"amp": "no"})
    assert one.parent == tmp_path
    assert one.name.startswith("a-..-b-c.pth-")
    assert one == default_state_path(tmp_path, "a/../b c.pth", {"amp": "no"})
    assert one != default_state_path(tmp_path, "a/../b c.pth", {"amp": "yes"})
