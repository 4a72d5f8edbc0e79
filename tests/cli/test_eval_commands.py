"""``ckptkit eval`` and ``ckptkit calibrate`` as users call them: words, JSON, exit codes, interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.commands import Runner, pip_install, runner
from tests.support.evaluation import IMAGES, Known, known_model, pictures, png, small_model
from tests.support.running import finish, start, wait_until


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    pytest.importorskip("torch").set_num_threads(1)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    pytest.importorskip("torch")
    return known_model(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def test_what_eval_prints(run: Runner, known: Known):
    done = run("eval", known.model, "--data", known.data, "--batch-size", "8")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"{known.model}: {IMAGES} images, {len(set(known.labels))} classes"
    assert lines[1] == f"  images    {known.data}; classes are folders in the order of their names"
    assert lines[2] == "  input     resized to cover, bicubic, centre 64x64, normalization imagenet"
    assert lines[3] == "  settings  attn_force_fp32 true"
    assert lines[4].startswith("  model     moganet-xt, torch 2.")
    assert lines[5].split() == ["accuracy", "measured", "95%", "interval", "published", "verdict"]
    assert lines[6].split()[:2] == ["top-1", f"{100 * known.top1 / IMAGES:.2f}%"]
    assert lines[6].endswith("not compared: no entry of the registry is named")
    assert lines[7].split()[:2] == ["top-5", f"{100 * known.top5 / IMAGES:.2f}%"]
    assert lines[8].endswith(" s")
    assert "images/s over" in lines[8]
    assert len(lines) == 9
    assert done.err == f"evaluating {known.model} …\n"


def test_json(run: Runner, known: Known):
    done = run("eval", known.model, "--data", known.data, "--limit", "6", "--json")
    report = json.loads(done.out)
    assert (report["images"], report["in_set"], report["sampled"]) == (6, IMAGES, True)
    assert report["framework"] == "torch"
    assert [score["top"] for score in report["scores"]] == [1, 5]


@pytest.mark.parametrize("given", [True, False])
def test_results_are_printed_where_the_state_cannot_be_kept_which_is_said_first(
    run: Runner, known: Known, tmp_path: Path, given: bool
):
    file = tmp_path / "no folder" if given else Path(os.environ["CKPTKIT_HOME"]) / "eval"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    options = ["--state", file / "state.json"] if given else []
    done = run("eval", known.model, "--data", known.data, "--limit", "3", "--json", *options)
    assert done.code == 0 and json.loads(done.out)["images"] == 3
    warning, working = done.err.splitlines()
    assert warning.startswith(f"warning: {file}")
    assert warning.endswith(": progress cannot be saved, so an interrupted run starts over")
    assert working.startswith("evaluating")


def test_folders_whose_names_have_two_orders(run: Runner, known: Known, tmp_path: Path):
    for label in range(10):
        shutil.copytree(known.data / f"class{label}", tmp_path / f"class{label + 1}")
    arguments = ["eval", known.model, "--data", tmp_path]
    done = run(*arguments)
    assert done.code == 0
    assert done.err.splitlines()[0].startswith("warning: class folder class10 comes before class2, as text")
    said = run(*arguments, "--class-order", "number", "--json")
    assert said.err.count("warning") == 0
    assert scores(said.out) == [(known.top1, IMAGES), (known.top5, IMAGES)]
    assert run(*arguments, "--class-order", "text").err.count("warning") == 0


@pytest.fixture
def entry(tmp_path: Path, known: Known) -> tuple[Path, dict[str, object]]:
    """A registry whose entry of this id is served from the small model's file."""
    values: dict[str, object] = {
        "id": "small",
        "family": "moganet",
        "variant": "moganet-xt",
        "display_name": "small",
        "layout": "torch",
        "format": "safetensors",
        "test_resolution": 64,
        "attn_force_fp32": True,
        "sources": [{"url": known.model.as_uri()}],
        # pinned, for a file of ten classes fits no entry by itself
        "sha256": hashlib.sha256(known.model.read_bytes()).hexdigest(),
        "hash_provenance": {"observed_at": "2026-01-31T12:00:00Z", "url": known.model.as_uri()},
    }
    return tmp_path / "registry.yaml", values


@pytest.mark.parametrize(("figure", "verdict"), [(99.0, "measured below"), (45.0, "inside")])
def test_check_holds_the_published_figure(
    run: Runner,
    known: Known,
    entry: tuple[Path, dict[str, object]],
    figure: float,
    verdict: str,
):
    path, values = entry
    path.write_text(yaml.safe_dump({"entries": [{**values, "published_top1": figure}]}), encoding="utf-8")
    arguments = ("--registry", path, "eval", "small", "--data", known.data)
    assert run(*arguments).code == 0
    done = run(*arguments, "--check")
    assert done.code == (verdict != "inside")
    assert verdict in done.out
    assert ("on the same 23 images attn_force_fp32=true" in done.out) == (verdict != "inside")


def test_check_without_anything_to_check(run: Runner, known: Known):
    done = run("eval", known.model, "--data", known.data, "--check")
    assert done.code == 2
    assert "--check has nothing to compare" in done.err
    done = run("eval", "moganet-xt-224", "--synthetic", "--data", known.data, "--check")
    assert done.code == 2
    assert "the weights are synthetic" in done.err


def test_bad_images_return_5_and_are_named(run: Runner, known: Known, tmp_path: Path):
    data = shutil.copytree(known.data, tmp_path / "data")
    images = sorted(data.rglob("*.png"))
    for image in images[:12]:
        image.write_bytes(b"nothing")
    done = run("eval", known.model, "--data", data)
    assert done.code == 5
    assert f"{IMAGES - 12} images," in done.out.splitlines()[0]
    assert "12 images cannot be decoded (counted neither way)" in done.err
    assert f"{images[0].relative_to(data)}: not an image of a format that is read" in done.err
    assert "and 2 more (--verbose lists all)" in done.err
    assert run("eval", known.model, "--data", data, "--skip-bad").code == 0
    assert "2 more" not in run("--verbose", "eval", known.model, "--data", data).err
    assert len(json.loads(run("eval", known.model, "--data", data, "--json").out)["bad"]) == 12


def test_a_file_without_statistics_is_refused_then_calibrated_then_evaluated(
    run: Runner,
    known: Known,
    tmp_path: Path,
):
    lacking = small_model(
        tmp_path / "lacking.safetensors", without="running_mean running_var", resolution="64"
    )
    for number, image in enumerate(pictures(6, seed=2)):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    refused = run("eval", lacking, "--data", known.data)
    assert refused.code == 5
    assert "'ckptkit calibrate' recomputes them from images" in refused.err
    output = tmp_path / "calibrated.safetensors"
    planned = run("calibrate", lacking, "--data", tmp_path, "-o", output, "--dry-run")
    assert planned.code == 0
    assert "would recompute the statistics of 45 BatchNorm layers from 6 images" in planned.err
    assert not output.exists()
    done = run("calibrate", lacking, "--data", tmp_path, "-o", output)
    assert (done.code, done.out) == (0, f"{output}\n")
    assert "recomputed the statistics of 45 BatchNorm layers from 6 images" in done.err
    assert run("eval", output, "--data", known.data, "--limit", "3").code == 0
    assert "bn_statistics: recalibrated" in run("inspect", output).out
    assert "recalibrated from 6 images" in run("verify", output).out
    again = run("calibrate", lacking, "--data", tmp_path, "-o", output)
    assert again.code == 2
    assert "exists already" in again.err
    assert run("calibrate", lacking, "--data", tmp_path, "-o", output, "--force").code == 0


def test_synthetic_weights_of_both_families(run: Runner, tmp_path: Path):
    for wnid in ("n01440764", "n02099601"):
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / "0.png").write_bytes(png(pictures(1)[0]))
    for id in ("moganet-xt-224", "tiny-moat0-256"):
        done = run("eval", id, "--synthetic", "--resolution", "64", "--data", tmp_path)
        assert done.code == 0
        assert "not compared: the weights are synthetic" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["eval", "moganet-xt-224"], 2, "--data"),
        (["eval", "no-such-entry", "--data", "."], 3, "no-such-entry"),
        (["calibrate", "moganet-xt-224", "--data", "."], 2, "--output"),
        (["eval", "MODEL", "--data", "nowhere"], 3, "no such folder or shard"),
        (["eval", "MODEL", "--data", "DATA", "--device", "cuda:99"], 2, "cuda:99|no GPU 99"),
        (["eval", "MODEL", "--data", "DATA", "--framework", "tf", "--amp"], 2, "--amp requires"),
    ],
)
def test_usage(run: Runner, known: Known, arguments: list[str], code: int, said: str):
    names = {"MODEL": str(known.model), "DATA": str(known.data)}
    done = run(*(names.get(one, one) for one in arguments))
    assert done.code == code
    assert any(part in done.err for part in said.split("|"))


@pytest.mark.parametrize(
    ("hidden", "options", "install"),
    [
        ("torch", [], pip_install("torch")),
        ("PIL", [], pip_install("pillow")),
        ("tensorflow", ["--framework", "tf"], pip_install("tensorflow")),
        ("onnxruntime", ["--framework", "onnxruntime"], pip_install("onnxruntime")),
    ],
)
def test_missing_packages_are_asked_for_before_anything_else(
    run: Runner, monkeypatch: pytest.MonkeyPatch, hidden: str, options: list[str], install: str
):
    monkeypatch.setitem(sys.modules, hidden, None)
    done = run("eval", "no-such-entry", "--data", "nowhere", *options)
    assert done.code == 6
    assert install in done.err
    if not options:
        done = run("calibrate", "no-such-entry", "--data", "nowhere", "-o", "x.safetensors")
        assert done.code == 6
        assert install in done.err


# Real interruptions

SLOWLY = """
import os
os.environ["OMP_NUM_THREADS"] = "1"
import time
from ckptkit.analysis.evaluate import loop
loop.SAVE_EVERY_S = 0.05
real = loop.ranks_of
def ranks_of(*given):
    time.sleep(0.3)
    return real(*given)
loop.ranks_of = ranks_of
"""


def scores(out: str) -> list[tuple[int, int]]:
    return [(score["hits"], score["images"]) for score in json.loads(out)["scores"]]


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    run: Runner,
    known: Known,
    tmp_path: Path,
    signal_sent: signal.Signals,
):
    arguments = ["eval", known.model, "--data", known.data, "--batch-size", "2", "--workers", "1", "--json"]
    folder = Path(os.environ["CKPTKIT_HOME"]) / "eval"
    process = start(arguments, Path(os.environ["CKPTKIT_HOME"]), SLOWLY)
    try:
        wait_until(lambda: folder.is_dir() and any(folder.glob("*.json")), timeout=60)
        process.send_signal(signal_sent)
        code, out, err = finish(process)
    finally:
        process.kill()
    assert out == ""
    if signal_sent == signal.SIGINT:
        assert code == 130, err
        assert f"of {IMAGES} images are done; the same command resumes from there ({folder}" in err
    else:
        assert code == -signal.SIGKILL
    done = run(*arguments)
    assert done.code == 0
    assert "resuming after" in done.err
    report = json.loads(done.out)
    assert 0 < report["resumed"] < IMAGES
    assert scores(done.out) == [(known.top1, IMAGES), (known.top5, IMAGES)]
    assert list(folder.glob("*.json")) == []
