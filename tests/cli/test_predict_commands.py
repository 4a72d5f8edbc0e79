"""``ckptkit predict`` as users call it: words, JSON, exit codes, thumbnails."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from ckptkit.cli.app import main
from tests.cli.test_thumbnails import Terminal
from tests.support.commands import Run, Runner, pip_install, runner
from tests.support.http_server import FaultServer
from tests.support.pictures import drawn, encoded, save

pytest.importorskip("PIL.Image")
pytest.importorskip("torch")

SMALL = ("--synthetic", "--resolution", "64")
NOTHING = "the weights are synthetic, random numbers: these predictions mean nothing"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the command in a folder that holds cat.png and dog.png."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("cat.png", "dog.png")):
        save(drawn(90, 70, seed), tmp_path / name)
    command = runner(capsys)

    def predict(*arguments: str | Path) -> Run:
        return command("predict", *arguments)

    return predict


def feed(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


class TestWords:
    def test_one_picture(self, run):
        found = run("tiny-moat0-256", "cat.png", *SMALL, "--top", "3")
        assert found.code == 0
        lines = found.out.splitlines()
        assert lines[0] == "cat.png"
        assert lines[1].split() == ["rank", "probability", "class", "wnid", "name"]
        assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
        assert all(line.split()[3].startswith("n") for line in lines[2:5])
        assert lines[-1] == f"note: {NOTHING}"
        assert f"warning: {NOTHING}" in found.err
        assert (
            "tiny-moat0-256: tiny-moat0 in PyTorch; resized to cover, bicubic, centre 64x64, "
            "normalization imagenet" in found.err
        )
        assert "\x1b" not in found.out, "no colour and no picture in a pipe"

    def test_many_pictures_in_order(self, run, tmp_path):
        save(drawn(8, 8), tmp_path / "folder" / "z.png")
        save(drawn(8, 8), tmp_path / "folder" / "deeper" / "a.png")
        found = run("tiny-moat0", "dog.png", "folder", "cat.png", *SMALL, "--top", "1", "--recursive")
        assert [line for line in found.out.splitlines() if line.endswith(".png")] == [
            "dog.png",
            str(Path("folder/deeper/a.png")),
            str(Path("folder/z.png")),
            "cat.png",
        ]

    def test_several_pictures_have_a_row_each(self, run, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"\x89PNG")
        found = run("tiny-moat0", "cat.png", "broken.png", "dog.png", *SMALL)
        assert found.code == 5 and "broken.png" in found.err
        heading, *rows = (line.split() for line in found.out.splitlines()[:3])
        assert heading == ["image", "probability", "class", "name"]
        assert [row[0] for row in rows] == ["cat.png", "dog.png"]
        best = {
            one["image"]: one["top"][0]
            for one in json.loads(run("tiny-moat0", "cat.png", "dog.png", *SMALL, "--json").out)
        }
        assert [" ".join(row[2:]) for row in rows] == [
            f"{best[row[0]]['index']} {best[row[0]]['name']}" for row in rows
        ]

    def test_csv_has_a_row_for_each_picture_and_class(self, run):
        found = run("tiny-moat0", "cat.png", "dog.png", *SMALL, "--format", "csv", "--top", "2")
        rows = list(csv.DictReader(io.StringIO(found.out)))
        assert [(row["image"], row["rank"]) for row in rows] == [
            *(("cat.png", "1"), ("cat.png", "2"), ("dog.png", "1"), ("dog.png", "2"))
        ]
        (top, *_), *_ = (one["top"] for one in json.loads(run("tiny-moat0", "cat.png", *SMALL, "--json").out))
        assert [int(rows[0]["class"]), rows[0]["wnid"], rows[0]["name"]] == [
            *(top["index"], top["wnid"], top["name"])
        ]
        assert float(rows[0]["probability"]) == pytest.approx(top["probability"], rel=1e-3)
        as_json = run("tiny-moat0", "cat.png", *SMALL, "--format", "json", "--top", "1")
        assert json.loads(as_json.out)[0]["image"] == "cat.png"

    def test_quiet_still_says_that_it_means_nothing(self, run):
        found = run("tiny-moat0", "cat.png", *SMALL, "--quiet")
        assert found.err == f"warning: {NOTHING}\n"

    def test_a_head_that_is_not_imagenets(self, run, tmp_path):
        import torch

        import ckptkit

        model = ckptkit.create_model("moganet-xt", num_classes=10, attn_force_fp32=True)
        torch.save(model.state_dict(), tmp_path / "ten.pth")
        found = run("ten.pth", "cat.png", "--set", "attn_force_fp32=true", "--resolution", "64")
        assert found.code == 0
        assert "the head has 10 classes, not ImageNet's 1,000" in found.err
        assert found.out.splitlines()[1].split() == ["rank", "probability", "class"]
        assert "synthetic" not in found.out + found.err

    def test_a_progress_note_counts_in_a_pipe(self, run):
        found = run("tiny-moat0", "cat.png", "dog.png", *SMALL, "--batch-size", "1")
        assert "predicting …" in found.err


class TestJson:
    def test_a_list_with_everything(self, run):
        found = run("moganet-xt-224", "cat.png", "dog.png", *SMALL, "--json", "--top", "2")
        assert found.code == 0
        values = json.loads(found.out)
        assert [value["image"] for value in values] == ["cat.png", "dog.png"]
        assert [guess["rank"] for guess in values[0]["top"]] == [1, 2]
        assert values[0]["preprocessing"]["resize"] == 71
        assert values[0]["framework"] == "torch"
        assert values[0]["weights"]["synthetic"] is True

    def test_both_frameworks_name_the_same_classes(self, run):
        pytest.importorskip("tensorflow")
        torch, tf = (
            json.loads(run("tiny-moat0", "cat.png", *SMALL, "--json", "--framework", framework).out)[0]
            for framework in ("torch", "tf")
        )
        assert (torch["framework"], tf["framework"]) == ("torch", "keras")
        assert [one["index"] for one in torch["top"]] == [one["index"] for one in tf["top"]]

    def test_faults_stand_among_the_results(self, run, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
        found = run("tiny-moat0", "none.png", "cat.png", "bad.png", *SMALL, "--json")
        assert found.code == 5
        values = {value["image"]: value for value in json.loads(found.out)}
        assert set(values) == {"none.png", "cat.png", "bad.png"}
        assert values["none.png"]["kind"] == "NotFoundError"
        assert values["bad.png"]["kind"] == "FormatError"
        assert "top" in values["cat.png"]


class TestFaults:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("none.png",), 3, "error: none.png: no such image"),
            (("text.png",), 5, "error: text.png: not an image of a format that is read"),
            (("empty",), 3, "error: empty: no image in this folder"),
            (
                ("https://pictures.invalid/cat.png", "--offline"),
                4,
                "error: https://pictures.invalid/cat.png is on",
            ),
            (("cat.png", "--top", "0"), 2, "error: invalid top 0"),
            (("cat.png", "--batch-size", "0"), 2, "error: invalid batch size 0"),
            (("cat.png", "--resolution", "wide"), 2, "error: --resolution: invalid size 'wide'"),
            (("-", "-"), 2, "error: - is named twice"),
            (("line.png",), 5, "error: line.png: 100000x1 pixels are too long and narrow"),
        ],
    )
    def test_of_the_only_picture(self, run, tmp_path, arguments, code, message):
        (tmp_path / "text.png").write_text("words")
        (tmp_path / "empty").mkdir()
        save(drawn(1, 1).resize((100_000, 1)), tmp_path / "line.png")
        found = run("tiny-moat0", *SMALL, *arguments)
        assert (found.code, found.out) == (code, "")
        assert message in found.err

    def test_of_one_among_many_leaves_the_others(self, run, tmp_path):
        (tmp_path / "text.png").write_text("words")
        found = run("tiny-moat0", *SMALL, "cat.png", "text.png", "none.png", "dog.png", "--top", "1")
        assert found.code == 5
        assert [line for line in found.out.splitlines() if line.endswith(".png")] == ["cat.png", "dog.png"]
        assert "warning: text.png: not an image of a format that is read" in found.err
        assert "warning: none.png: no such image" in found.err

    def test_of_all(self, run):
        found = run("moat4-512", "a.png", "b.png")
        assert found.code == 5, "and nothing was fetched for it"
        assert found.err.count("no such image") == 2

    def test_no_such_entry(self, run):
        assert run("moat9", "cat.png").code == 3

    @pytest.mark.parametrize(
        ("hidden", "options", "named"),
        [
            ("torch", (), "torch"),
            ("tensorflow", ("--framework", "tf"), "tensorflow"),
            ("tensorflow", ("--check-preprocessing",), "tensorflow"),
            ("PIL", (), "pillow"),
        ],
    )
    def test_missing_packages_before_anything_else(self, run, hidden, options, named, monkeypatch):
        import importlib.util

        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == hidden else find(name))
        found = run("moat4-512", "none.png", *options)
        assert (found.code, found.err) == (6, f"error: predict needs {named}; {pip_install(named)}\n")


class TestWhereFrom:
    def test_standard_input(self, run, monkeypatch, tmp_path):
        feed(monkeypatch, (tmp_path / "cat.png").read_bytes())
        piped = run("tiny-moat0", "-", *SMALL)
        assert piped.out.splitlines()[0] == "stdin"
        assert piped.out.splitlines()[1:] == run("tiny-moat0", "cat.png", *SMALL).out.splitlines()[1:]

    def test_a_url_leaves_nothing_in_the_cache(self, run, tmp_path):
        from ckptkit.store.cache import Home

        with FaultServer() as server:
            url = server.serve("/a/cat.png", encoded(drawn(90, 70, 0)))
            found = run("tiny-moat0", f"{url}?key=secret", *SMALL)
        assert found.code == 0
        assert found.out.splitlines()[0] == url
        assert "secret" not in found.out + found.err
        assert f"fetching {url}" in found.err
        assert not [path for path in Home.default().path.rglob("*") if path.is_file()]

    def test_a_url_that_is_not_there(self, run):
        with FaultServer() as server:
            found = run("tiny-moat0", server.url("/none.png"), *SMALL)
        assert found.code == 3
        assert "404" in found.err


class TestPreprocessingCheck:
    @pytest.fixture(autouse=True)
    def _tensorflow(self):
        pytest.importorskip("tensorflow")

    def test_agreement(self, run):
        found = run("tiny-moat0", "cat.png", *SMALL, "--check-preprocessing")
        assert found.code == 0
        rows = [line for line in found.out.splitlines() if line.endswith("agrees")]
        assert [row.split("  ")[0] for row in rows] == [
            "Pillow and PyTorch",
            "Pillow and TensorFlow",
            "PyTorch and TensorFlow",
        ]

    def test_disagreement_returns_1(self, run, monkeypatch):
        from ckptkit.models.images import tensorflow_pipeline

        monkeypatch.setitem(tensorflow_pipeline._METHODS, "bicubic", "bilinear")
        found = run("tiny-moat0", "cat.png", *SMALL, "--check-preprocessing")
        assert found.code == 1
        assert "Pillow and TensorFlow prepare the picture differently" in found.out
        found = run("tiny-moat0", "cat.png", *SMALL, "--check-preprocessing", "--json")
        assert found.code == 1
        (value,) = json.loads(found.out)
        assert value["preprocessing_check"]["ok"] is False
        assert [pair["verdict"] for pair in value["preprocessing_check"]["pairs"]] == [
            "agrees",
            "differs",
            "differs",
        ]


class TestOnATerminal:
    @pytest.fixture
    def shown(self, run, monkeypatch):
        """Run the command with a terminal for its standard output; gives what arrived there."""

        def show(*arguments, **environment):
            for name in ("TERM", "COLORTERM", "NO_COLOR", "TMUX", "STY", "TERM_PROGRAM", "KITTY_WINDOW_ID"):
                monkeypatch.delenv(name, raising=False)
            for name, value in {"TERM": "xterm-256color", **environment}.items():
                monkeypatch.setenv(name, value)
            terminal = Terminal()
            monkeypatch.setattr(sys, "stdout", terminal)
            with pytest.raises(SystemExit) as left:
                main(["predict", "tiny-moat0", "cat.png", *SMALL, "--top", "1", *arguments])
            assert not left.value.code
            return terminal.getvalue()

        return show

    def test_the_picture_stands_between_its_name_and_the_table(self, shown):
        lines = shown(COLORTERM="truecolor").splitlines()
        assert lines[0] == "cat.png"
        blocks = [line for line in lines if "▀" in line]
        assert len(blocks) == 14
        assert lines[1:15] == blocks
        assert any("probability" in line for line in lines[15:])

    def test_what_it_is_not_shown_for(self, shown):
        for arguments, environment in (
            (("--no-thumbnails",), {}),
            (("--json",), {}),
            (("--quiet",), {}),
            ((), {"NO_COLOR": "1"}),
        ):
            text = shown(*arguments, **environment)
            assert "▀" not in text, (arguments, environment)
            assert "probability" in text
