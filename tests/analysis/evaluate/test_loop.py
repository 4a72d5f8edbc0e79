"""Evaluations: counts, interruptions, published figures, the other setting."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptkit
from ckptkit.analysis.evaluate import loop
from ckptkit.analysis.evaluate import loop as module
from ckptkit.analysis.evaluate.loop import (
    EvaluationOptions,
    Progress,
    StateFile,
    default_state_path,
    evaluate_source,
)
from ckptkit.analysis.model_source import SourceRequest, open_source
from ckptkit.base.errors import ConversionError, FormatError, StorageError, UsageError
from ckptkit.registry.loading import load_registry
from ckptkit.workspace import Located, Workspace
from tests.support.evaluation import (
    IMAGES,
    Known,
    class_tree,
    order_of_classes,
    pictures,
    pixels,
    png,
    shard,
    small_model,
)

if TYPE_CHECKING:
    from PIL import Image

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
        lambda v: v["progress"].pop("outcomes"),
        lambda v: v["progress"].update(outcomes="!" * 21),
        lambda v: v["progress"].update(outcomes="é" * 21),
        lambda v: v["progress"].update(outcomes=5),
        lambda v: v["progress"].update(outcomes=v["progress"]["outcomes"] + "0"),
        lambda v: v["progress"].update(bad=[]),
        lambda v: v["progress"].update(bad={"99": "x"}),
        lambda v: v["progress"].update(bad={"1": "not done"}),
        lambda v: v["progress"].update(bad={"0": "was hit"}),
        lambda v: v["progress"].update(outcomes=v["progress"]["outcomes"].replace("3", "4")),
        lambda v: v["progress"].update(outcomes="0" * 20),
        lambda v: v["progress"].update(outcomes="000"),
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


torch = pytest.importorskip("torch")


def counts(report: ckptkit.analysis.evaluate.report.Evaluation) -> tuple[int, int, int]:
    return report.images, report.scores[0].hits, report.scores[1].hits


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 2), (64, 1)])
def test_counts_are_those_of_the_model(known: Known, batch_size: int, workers: int):
    report = ckptkit.evaluate(known.model, known.data, batch_size=batch_size, workers=workers)
    assert counts(report) == (IMAGES, known.top1, known.top5)
    assert report.top1.percent == pytest.approx(100 * known.top1 / IMAGES)
    assert (report.classes, report.sampled, report.resumed) == (len(set(known.labels)), False, 0)
    assert report.settings == {"attn_force_fp32": True}
    assert (report.device, report.precision, report.processes) == ("cpu", "float32", 1)
    assert report.top1.verdict == "not compared"
    assert report.ok
    assert report.images_per_second == pytest.approx(IMAGES / report.seconds)
    assert json.loads(json.dumps(report.to_json()))["scores"][0]["hits"] == known.top1


def test_shards_give_the_same_counts(known: Known, tmp_path: Path):
    for number in range(3):
        files: dict[str, bytes] = {}
        for n in range(number, IMAGES, 3):
            label = known.labels[n]
            files[f"{n:04d}.png"] = png(known.images[n])
            files[f"{n:04d}.cls" if n % 2 else f"{n:04d}.json"] = (
                str(label).encode() if n % 2 else json.dumps({"label": label}).encode()
            )
        shard(tmp_path / f"val-{number}.tar", files)
    assert counts(ckptkit.evaluate(known.model, f"{tmp_path}/val-{{0..2}}.tar")) == (
        IMAGES,
        known.top1,
        known.top5,
    )


def test_a_flat_folder_gives_the_same_counts(known: Known, tmp_path: Path):
    lines = []
    for number, (image, label) in enumerate(zip(known.images, known.labels, strict=True)):
        (tmp_path / f"{number}.png").write_bytes(png(image))
        lines.append(f"{number}.png {label}\n")
    (tmp_path / "labels.txt").write_text("".join(lines), encoding="utf-8")
    report = ckptkit.evaluate(known.model, tmp_path, labels=tmp_path / "labels.txt")
    assert counts(report) == (IMAGES, known.top1, known.top5)


@pytest.mark.parametrize(
    ("framework", "package"),
    [("tf", "tensorflow"), pytest.param("onnxruntime", "onnxruntime", marks=pytest.mark.slow)],
)
def test_other_frameworks_give_the_same_counts(known: Known, framework: str, package: str):
    pytest.importorskip(package)
    report = ckptkit.evaluate(known.model, known.data, framework=framework, batch_size=16)
    assert counts(report) == (IMAGES, known.top1, known.top5)
    assert package in report.versions


def test_half_precision_computes_in_it(known: Known):
    report = ckptkit.evaluate(known.model, known.data, amp=True, limit=4)
    assert report.precision == "bfloat16"
    assert report.images == 4


def test_a_limit_is_a_sample_over_the_classes(known: Known):
    report = ckptkit.evaluate(known.model, known.data, limit=9)
    assert (report.images, report.in_set, report.sampled) == (9, IMAGES, True)
    assert report.classes == min(9, len(set(known.labels)))
    assert counts(report) == counts(ckptkit.evaluate(known.model, known.data, limit=9, fresh=True))


def test_bad_images_are_named_and_count_neither_way(known: Known, tmp_path: Path):
    data = shutil.copytree(known.data, tmp_path / "data")
    first, second = sorted(data.rglob("*.png"))[:2]
    labels = dict(zip(sorted(range(IMAGES), key=lambda n: (known.labels[n], n)), range(IMAGES), strict=True))
    first.write_bytes(first.read_bytes()[:100])
    second.write_bytes(b"")
    report = ckptkit.evaluate(known.model, data)
    assert [bad.name for bad in report.bad] == [p.relative_to(data).as_posix() for p in (first, second)]
    assert all(bad.reason for bad in report.bad)
    assert report.images == IMAGES - 2
    assert not report.sampled
    model = ckptkit.create_model("moganet-xt", checkpoint=known.model, num_classes=10)
    lost = [n for n, place in labels.items() if place < 2]  # the first two in the order of names
    hits = sum(order_of_classes(model, known.images[n])[0] == known.labels[n] for n in lost)
    assert report.top1.hits == known.top1 - hits


def test_nothing_but_bad_images(known: Known, tmp_path: Path):
    data = class_tree(tmp_path / "data", [], [])
    (data / "class3" / "x.png").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"no image can be decoded; class3/x.png"):
        ckptkit.evaluate(known.model, data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"limit": 0}, "limit 0"),
        ({"workers": -1}, "workers -1"),
        ({"framework": "jax"}, "unknown framework 'jax'"),
        ({"framework": "tf", "amp": True}, "amp=True requires"),
        ({"framework": "tf", "device": "cuda"}, 'device="cuda" requires'),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "cuda:"}, "unknown device 'cuda:'"),
        ({"device": "cuda:x"}, "unknown device 'cuda:x'"),
    ],
)
def test_options_that_make_no_sense(known: Known, options, said: str):
    with pytest.raises(UsageError, match=said):
        ckptkit.evaluate(known.model, known.data, **options)


def test_a_gpu_that_is_not_there(known: Known):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match="sees no GPU"):
        ckptkit.evaluate(known.model, known.data, device="cuda:0")


def test_a_headless_file_has_nothing_to_score(known: Known, tmp_path: Path):
    path = small_model(tmp_path / "m.safetensors", without="head.weight head.bias")
    with pytest.raises(UsageError, match="no classification head"):
        ckptkit.evaluate(path, known.data)


def test_missing_statistics_hint_at_calibrate(known: Known, tmp_path: Path):
    path = small_model(tmp_path / "m.safetensors", without="running_mean running_var")
    with pytest.raises(ConversionError, match="ckptkit calibrate"):
        ckptkit.evaluate(path, known.data)


def test_logits_that_are_no_numbers_are_no_misses(known: Known, tmp_path: Path):
    state = load_file(known.model)
    state["head.bias"] = np.full(10, np.nan, np.float32)
    path = tmp_path / "nan.safetensors"
    save_file(state, path, metadata={"attn_force_fp32": "true", "resolution": "64"})
    with pytest.raises(FormatError, match=r"its logits for class.* are not all numbers"):
        ckptkit.evaluate(path, known.data)


# Interruptions


class Stop(Exception):
    """Ends a run from outside."""


def stopping_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Let a run fail after so many batches."""
    real = loop.ranks_of
    left = [batches]

    def ranks_of(logits, labels):
        if not left[0]:
            raise Stop
        left[0] -= 1
        return real(logits, labels)

    monkeypatch.setattr(loop, "ranks_of", ranks_of)


def begin(known: Known, data: Path, batches: int, **options) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stopping_after(patch, batches)
        ckptkit.evaluate(known.model, data, batch_size=4, **options)


def state_files() -> list[Path]:
    folder = Path(os.environ["CKPTKIT_HOME"]) / "eval"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_second_run_goes_on_where_the_first_was(known: Known):
    begin(known, known.data, 3)
    assert len(state_files()) == 1
    report = ckptkit.evaluate(known.model, known.data, batch_size=5)
    assert counts(report) == (IMAGES, known.top1, known.top5)
    assert report.resumed == 12
    assert state_files() == []


def test_bad_images_are_remembered(known: Known, tmp_path: Path):
    data = shutil.copytree(known.data, tmp_path / "data")
    bad = min(data.rglob("*.png"))
    bad.write_bytes(b"nothing")
    begin(known, data, 2)
    report = ckptkit.evaluate(known.model, data)
    assert report.resumed == 8
    assert [one.name for one in report.bad] == [bad.relative_to(data).as_posix()]


def test_fresh_begins_anew(known: Known):
    begin(known, known.data, 3)
    report = ckptkit.evaluate(known.model, known.data, fresh=True)
    assert (report.resumed, report.images) == (0, IMAGES)


def test_a_changed_data_set_begins_anew_and_says_so(
    known: Known, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    data = shutil.copytree(known.data, tmp_path / "data")
    begin(known, data, 3)
    os.utime(max(data.rglob("*.png")), ns=(5, 5))
    with caplog.at_level("INFO", logger="ckptkit"):
        assert ckptkit.evaluate(known.model, data).resumed == 0
    assert "the data set has changed: starting over" in caplog.text


def test_a_changed_checkpoint_begins_anew_and_says_so(
    known: Known, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = Path(shutil.copy(known.model, tmp_path / "m.safetensors"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stopping_after(patch, 1)
        ckptkit.evaluate(model, known.data, batch_size=4)
    os.utime(model, ns=(5, 5))
    with caplog.at_level("INFO", logger="ckptkit"):
        assert ckptkit.evaluate(model, known.data).resumed == 0
    assert "the checkpoint has changed: starting over" in caplog.text


def test_other_choices_have_a_state_of_their_own(known: Known):
    begin(known, known.data, 3)
    begin(known, known.data, 2, settings={"attn_force_fp32": False})
    begin(known, known.data, 1, limit=20)
    assert len(state_files()) == 3
    assert ckptkit.evaluate(known.model, known.data, limit=20).resumed == 4
    assert ckptkit.evaluate(known.model, known.data).resumed == 12


def test_a_state_file_of_ones_own(known: Known, tmp_path: Path):
    state = tmp_path / "mine.json"
    begin(known, known.data, 3, state=state)
    assert state.exists()
    assert state_files() == []
    assert ckptkit.evaluate(known.model, known.data, state=state).resumed == 12
    assert not state.exists()


# The published figures, and the gate


def published(model: Path, top1: float | None, **changes) -> ckptkit.analysis.model_source.ModelSource:
    """The small model as the file of an entry that publishes this accuracy."""
    entry = load_registry()["moganet-xt-224"]
    changed = {"published_top1": top1, "published_top5": None, "test_resolution": 64, "test_resize": None}
    entry = entry.model_copy(update={**changed, **changes})
    return open_source(Located(model, entry), Workspace())


@pytest.mark.parametrize(
    ("figure", "verdict"), [(95.0, "measured below"), (1.0, "measured above"), (40.0, "inside")]
)
def test_beside_the_published_figure(known: Known, figure: float, verdict: str):
    source = published(known.model, figure)
    report = evaluate_source(source, EvaluationOptions([known.data], check=True))
    assert report.top1.verdict == verdict
    assert report.ok == (verdict == "inside")
    assert "here are 23" in report.notes[0]
    assert report.top5 is not None
    assert report.top5.reason == "none is published"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"test_resolution": 128, "published_top1": 70.0}, ""),
        ({"published_top1": None}, "none is published"),
    ],
)
def test_when_there_is_nothing_to_compare_with(known: Known, changes, reason: str):
    source = published(known.model, 50.0, **changes)
    if not reason:
        source = open_source(source.located, Workspace(), SourceRequest(known.model, resolution=64))
        reason = "published at 128×128"
    with pytest.raises(UsageError, match=reason):
        evaluate_source(source, EvaluationOptions([known.data], check=True))
    report = evaluate_source(source, EvaluationOptions([known.data], limit=3))
    assert report.top1.reason == reason
    assert report.ok


def test_a_file_that_names_its_entry_is_compared_with_it(tmp_path: Path):
    path = small_model(tmp_path / "m.safetensors", entry="moganet-xt-224", resolution="224")
    source = open_source(Located(path), Workspace())
    assert source.entry is None
    assert source.origin is not None
    assert source.origin.published_top1 == 76.5
    assert str(source.preprocessing).startswith("shorter side to 248, bicubic, centre 224x224")
    resized = small_model(tmp_path / "r.safetensors", entry="moganet-xt-224", resolution="112")
    assert str(open_source(Located(resized), Workspace()).preprocessing).startswith("shorter side to 124, ")
    other = small_model(tmp_path / "o.safetensors", entry="moganet-s-224")
    assert open_source(Located(other), Workspace()).origin is None


@dataclass(frozen=True)
class OtherGate:
    """A model in which the gate matters, and images labelled by what the other function answers."""

    model: Path
    data: Path
    images: int
    hits: int
    """Of the function with ``attn_force_fp32=True``."""


def _with_gate(path: Path, *, value: bool, **options):
    return ckptkit.create_model(
        "moganet-xt", checkpoint=path, num_classes=10, attn_force_fp32=value, **options
    )


def _pooled(path: Path, images: Sequence[Image.Image], *, value: bool) -> np.ndarray:
    """What the head sees of each image, with a one for its bias."""
    model = _with_gate(path, value=value, features_only=True)
    with torch.inference_mode():
        last = model(torch.from_numpy(np.concatenate([pixels(image) for image in images])))[-1]
    pooled = last.mean(dim=(2, 3)).double().numpy()
    return np.concatenate([pooled, np.ones((len(images), 1))], axis=1)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> OtherGate:
    """The two functions differ little on random weights, so the head is made to see the difference.

    It is the solution of linear equations: of every third image both functions say the same class, of the
    others each says its own.
    """
    folder = tmp_path_factory.mktemp("gate")
    path = small_model(folder / "small.safetensors", resolution="64")
    images = pictures(24, seed=5)
    wanted = np.arange(len(images)) % 10
    of_this = np.where(np.arange(len(images)) % 3 == 0, wanted, (wanted + 1) % 10)
    seen = np.concatenate([_pooled(path, images, value=value) for value in (True, False)])
    head = np.linalg.lstsq(seen, np.eye(10)[np.concatenate([of_this, wanted])], rcond=None)[0].T
    state = load_file(path)
    state["head.weight"] = np.ascontiguousarray(head[:, :-1], np.float32)
    state["head.bias"] = np.ascontiguousarray(head[:, -1], np.float32)
    save_file(state, path, metadata={"attn_force_fp32": "true", "resolution": "64"})
    this, other = _with_gate(path, value=True), _with_gate(path, value=False)
    labels = [order_of_classes(other, image)[0] for image in images]
    hits = sum(order_of_classes(this, image)[0] == label for image, label in zip(images, labels, strict=True))
    assert hits < len(images) - 6  # else these images could not tell the functions apart
    return OtherGate(path, class_tree(folder / "data", images, labels), len(images), hits)


def test_the_other_gate_is_tried_when_the_result_is_too_low(gate: OtherGate):
    report = evaluate_source(published(gate.model, 99.9), EvaluationOptions([gate.data]))
    other = report.other_setting
    assert report.top1.verdict == "measured below"
    assert report.top1.hits == gate.hits
    assert other is not None
    assert (other.setting, other.value, other.images) == ("attn_force_fp32", True, gate.images)
    assert (other.hits, other.other_hits) == (gate.hits, gate.images)
    assert (other.only_this, other.only_other) == (0, gate.images - gate.hits)
    assert other.better == "other"
    assert "attn_force_fp32=false fits better: give it with --set" in str(other)
    right = evaluate_source(
        published(gate.model, 99.9, attn_force_fp32=False), EvaluationOptions([gate.data])
    )
    assert right.top1.hits == gate.images
    assert right.other_setting is None


def test_an_interruption_while_the_other_gate_is_tried_loses_nothing(gate: OtherGate):
    options = EvaluationOptions([gate.data], batch_size=8)  # three batches, then three with the other gate
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stopping_after(patch, 4)
        evaluate_source(published(gate.model, 99.9), options)
    report = evaluate_source(published(gate.model, 99.9), options)
    assert (report.resumed, report.images_per_second) == (gate.images, None)
    assert report.top1.hits == gate.hits
    assert report.other_setting is not None
    assert report.other_setting.other_hits == gate.images
    assert state_files() == []


def test_only_a_sample_is_tried_unless_all_are_asked_for(gate: OtherGate, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "GATE_SAMPLE", 10)
    source = published(gate.model, 99.9)
    tried = evaluate_source(source, EvaluationOptions([gate.data])).other_setting
    assert tried is not None
    assert (tried.images, tried.other_hits) == (10, 10)
    every = evaluate_source(source, EvaluationOptions([gate.data], both_gates=True)).other_setting
    assert every is not None
    assert every.images == gate.images


def test_both_gates_are_compared_when_asked(gate: OtherGate):
    report = ckptkit.evaluate(gate.model, gate.data, both_gates=True, settings={"attn_force_fp32": False})
    assert report.other_setting is not None
    assert report.other_setting.better == "this"
    assert report.other_setting.other_hits == gate.hits


def test_a_file_that_does_not_say_its_gate_is_evaluated_with_both(gate: OtherGate, tmp_path: Path):
    path = tmp_path / "untold.safetensors"
    save_file(load_file(gate.model), path, metadata={"resolution": "64"})
    with pytest.raises(UsageError, match="attn_force_fp32 is not known"):
        ckptkit.evaluate(path, gate.data)
    report = ckptkit.evaluate(path, gate.data, both_gates=True)
    assert report.other_setting is not None
    assert report.other_setting.better == "other"
    assert "attn_force_fp32 is not known" in report.notes[0]


def test_gates_that_cannot_be_told_apart(known: Known):
    report = ckptkit.evaluate(known.model, known.data, both_gates=True, limit=5)
    assert report.other_setting is not None
    assert report.other_setting.better == "undecided"
    assert "do not tell" in str(report.other_setting)


def test_a_family_without_such_a_setting(known: Known, tmp_path: Path):
    path = small_model(tmp_path / "moat.safetensors", "tiny-moat0", resolution="64")
    with pytest.raises(UsageError, match="family moat has no such setting"):
        ckptkit.evaluate(path, known.data, both_gates=True)
    assert ckptkit.evaluate(path, known.data, limit=3).images == 3
