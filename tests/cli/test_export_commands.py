"""``ckptkit export`` as users call it: files, words, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ckptkit
from tests.conftest import REPOSITORY
from tests.support.commands import Runner, runner
from tests.support.exporting import trained, write_safetensors
from tests.support.fake_hub import COMMIT, TOKEN, FakeHub


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_target_can_be_named(run: Runner):
    from ckptkit.export.targets import TARGETS

    assert f"<{'|'.join(TARGETS)}>" in "".join(run("export", "--help").out.split())


def test_a_folder_for_the_hub(run: Runner, here: Path):
    done = run("export", "moganet-xt-224", "--synthetic", "--to", "hf", "-o", "out")
    assert (done.code, done.out) == (0, "out\n")
    assert "705 tensors, read back and compared; config.json fits them" in done.err
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        "README.md",
        "config.json",
        "configuration_moganet.py",
        "image_processing_moganet.py",
        "model.safetensors",
        "modeling_moganet.py",
        "preprocessor_config.json",
    ]


def test_the_default_place_is_here_by_name(run: Runner, here: Path):
    assert run("export", "moganet-xt-224", "--synthetic", "--to", "hf", "-q").out == "moganet-xt-224-hf\n"
    told = ("--set", "attn_force_fp32=true")
    assert run("export", "moganet-xt", "--synthetic", "--to", "hf", *told).out == "moganet-xt-hf\n"
    file = write_safetensors(here / "mine.safetensors", trained("moganet-xt"))
    assert run("export", file, "--to", "hf", *told).out == "mine-hf\n"
    assert run("export", "mine-hf", "--to", "hf").out == "mine-hf-hf\n"
    first, second = (here / name / "model.safetensors" for name in ("mine-hf", "mine-hf-hf"))
    from safetensors.numpy import load_file

    assert load_file(first).keys() == load_file(second).keys()


def test_an_existing_output_is_refused_without_force(run: Runner, here: Path):
    command = ("export", "moganet-xt-224", "--synthetic", "--to", "hf", "-o", "out")
    run(*command)
    again = run(*command)
    assert again.code == 2
    assert again.err.strip() == "error: out exists already; give --force to replace it, or another --output"
    assert run(*command, "--force").code == 0
    (here / "out" / "mine.txt").write_text("x")
    refused = run(*command, "--force")
    assert refused.code == 2
    assert "holds mine.txt, which ckptkit did not write" in refused.err
    assert (here / "out" / "mine.txt").exists()


def test_a_dry_run(run: Runner, here: Path):
    done = run("export", "moganet-xt-224", "--synthetic", "--to", "hf", "--dry-run")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["file", "size"]
    assert [line[0] for line in lines[1:]] == [
        "model.safetensors",
        "config.json",
        "configuration_moganet.py",
        "modeling_moganet.py",
        "image_processing_moganet.py",
        "preprocessor_config.json",
        "README.md",
    ]
    assert lines[1][1:] == ["11.9", "MB"]
    assert "would write 7 files to moganet-xt-224-hf; 705 tensors" in done.err
    assert list(here.iterdir()) == []


def test_a_dry_run_of_a_push_needs_no_network_and_no_token(run: Runner, here: Path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run(
        *("export", "moganet-xt-224", "--synthetic", "--to", "hf", "--dry-run"),
        *("--push", "me/moga", "--push-synthetic", "--offline"),
    )
    assert done.code == 0
    assert "would write 7 files, and push to me/moga" in done.err
    assert list(here.iterdir()) == []


def test_json(run: Runner, here: Path):
    done = run("export", "moganet-xt-224", "--synthetic", "--to", "hf", "-o", "out", "--json")
    said = json.loads(done.out)
    assert (said["path"], said["pushed"], said["ok"]) == ("out", None, True)
    assert {file["name"]: file["bytes"] for file in said["files"]} == {
        path.name: path.stat().st_size for path in (here / "out").iterdir()
    }


def test_a_backbone_prints_the_config(run: Runner, here: Path):
    pytest.importorskip("torch")
    done = run("export", "moganet-xt-224", "--synthetic", "--to", "backbone", "-o", "out")
    assert (done.code, done.out) == (0, "out\n")
    assert f"init_cfg=dict(type='Pretrained', checkpoint='{here}/out/backbone.pth')" in done.err
    assert (here / "out" / "USE.txt").read_text(encoding="utf-8").strip() in done.err


def test_a_check_that_does_not_hold_returns_one(run: Runner, here: Path, monkeypatch):
    from ckptkit.export import targets

    def failing(self, source, output, options):
        return targets.Exported(output, (), "features differ; nothing was kept", ok=False)

    monkeypatch.setattr(targets.Target, "export", failing)
    done = run("export", "moganet-xt-224", "--synthetic", "--to", "hf")
    assert (done.code, done.out) == (1, "")
    assert "features differ; nothing was kept" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--to", "coreml"), 2, "coreml"),
        ((), 2, "--to"),
        (("--to", "hf", "--opset", "18"), 2, "--opset does not apply to --to hf"),
        (("--to", "hf", "--private"), 2, "--private and --push-synthetic require --push"),
        (("--to", "hf", "--push", "nobody"), 2, "'nobody' is not a repository name"),
        (("--to", "hf", "--push", "me/moga"), 2, "these weights are synthetic"),
        (("--to", "hf", "--push", "me/moga", "--push-synthetic", "--offline"), 4, "--offline forbids"),
        (("--to", "hf", "--set", "pool_size=2"), 2, "family moganet has no setting pool_size"),
    ],
)
def test_what_makes_no_sense(run: Runner, here: Path, arguments, code, words):
    done = run("export", "moganet-xt-224", "--synthetic", *arguments)
    assert done.code == code
    assert words in done.err
    assert list(here.iterdir()) == []


def test_a_push_from_the_command_line(here: Path):
    """With huggingface_hub's own environment variables, in a process of its own."""
    pytest.importorskip("huggingface_hub")
    file = write_safetensors(here / "mine.safetensors", trained("moganet-xt"))
    with FakeHub() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ckptkit.cli.app", "export", str(file), "--to", "hf"),
                *("--set", "attn_force_fp32=true", "-o", "out", "--push", "me/moga", "--private"),
            ],
            cwd=here,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, f"out\n{hub.url}/me/moga/commit/{COMMIT}\n"), done.stderr
    assert hub.repositories == {"me/moga": True}
    assert hub.files == {path.name: path.read_bytes() for path in (here / "out").iterdir()}
    assert "pushing 7 files to me/moga" in done.stderr


def test_the_python_face(here: Path):
    folder = ckptkit.export("moganet-xt-224", "hf", synthetic=True)
    assert folder == Path("moganet-xt-224-hf")
    assert (folder / "config.json").is_file()
    with pytest.raises(ckptkit.base.errors.UsageError, match="exists already"):
        ckptkit.export("moganet-xt-224", "hf", synthetic=True)
    with pytest.raises(ckptkit.base.errors.UsageError, match="synthetic"):
        ckptkit.export("moganet-xt-224", "hf", "other", synthetic=True, push="me/moga")


def test_no_framework_is_imported_for_a_folder(here: Path):
    code = (
        "import sys, ckptkit\n"
        "ckptkit.export('moganet-xt-224', 'hf', 'out', synthetic=True)\n"
        "print([name for name in ('torch', 'tensorflow', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_several_that_would_be_one_file_are_refused(run: Runner, here: Path):
    for folder in ("a", "b"):
        (here / folder).mkdir()
        write_safetensors(here / folder / "mine.safetensors", trained("moganet-xt"))
    told = ("--to", "hf", "-o", "out/", "--force", "--set", "attn_force_fp32=true")
    done = run("export", "a/mine.safetensors", "b/mine.safetensors", *told)
    assert (done.code, done.out) == (2, "out/mine-hf\n")
    assert "out/mine-hf is the result of a/mine.safetensors already; export one of them alone" in done.err
    assert done.err.splitlines()[-1] == "warning: 1 exported, 1 failed: b/mine.safetensors"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "onnx", "-o", "x.onnx"], "x.onnx is one file, but there are 2 exports; give -o FOLDER/"),
        (["--to", "hf", "--push", "me/it"], "--push sends one export to one repository; name one source"),
    ],
)
def test_what_several_cannot_have(run: Runner, here: Path, options: list[str], says: str):
    done = run("export", "tiny-moat0-256", "moganet-xt-224", "--synthetic", *options)
    assert (done.code, done.out) == (2, "") and says in done.err
    assert not any(here.iterdir())
