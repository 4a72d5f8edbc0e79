"""``demo``: the whole job, and what it says when a framework is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import requests

from ckptkit.demo import DEMO_ENTRY, serve_file
from tests.support.commands import pip_install

COMMAND = [sys.executable, "-m", "ckptkit.cli.app", "demo"]

WITHOUT_FRAMEWORKS = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tensorflow", "keras"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
from ckptkit.cli.app import main
main(sys.argv[1:])
"""


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def test_the_whole_job(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    done = run([*COMMAND, "--keep", str(tmp_path / "kept")])
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "SYNTHETIC" in said.splitlines()[0]
    for step in ("fetch", "verify", "convert", "parity"):
        assert f"ckptkit {step} {DEMO_ENTRY}" in said
    assert "crc32c, md5 as the server promised" in said
    assert f"agree: {DEMO_ENTRY} (synthetic weights, float32): all 6 outputs within tolerance" in said
    assert "Traceback" not in done.stderr
    converted = tmp_path / "kept" / "home" / "converted" / DEMO_ENTRY
    assert sorted(p.name for p in converted.iterdir()) == ["torch-float32.pth", "torch-float32.safetensors"]


def test_with_the_base_install_it_stops_before_the_forward_passes():
    done = run([sys.executable, "-c", WITHOUT_FRAMEWORKS, "demo"])
    assert done.returncode == 6, done.stderr
    assert "written, read back and compared" in done.stdout
    assert "the forward passes need both" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.endswith(pip_install("torch", "tensorflow"))


def test_the_users_own_cache_is_left_alone(tmp_path):
    home = tmp_path / "home"
    run([sys.executable, "-c", WITHOUT_FRAMEWORKS, "demo"], env={"CKPTKIT_HOME": str(home), "PATH": ""})
    assert not (home / "artefacts").exists()


def test_an_unknown_entry_is_refused():
    done = run([*COMMAND, "moganet-xt-225"])
    assert done.returncode == 3
    assert "did you mean" in done.stderr and "moganet-xt-224" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("id", ["moganet-xt-224", "moganet-xt-224-timm"])
def test_the_whole_job_on_either_release_of_moganet(id):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    done = run([*COMMAND, id])
    assert done.returncode == 0, done.stderr
    assert f"agree: {id} (synthetic weights, float32): all 5 outputs within tolerance" in done.stdout


@pytest.mark.parametrize("kept", ["file", "folder"])
def test_what_is_kept_needs_a_folder_of_its_own(tmp_path, kept):
    (tmp_path / "folder" / "server").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    done = run([*COMMAND, "--keep", str(tmp_path / kept)])
    assert done.returncode == 2
    assert done.stderr.endswith("; name a folder that is new or empty\n") and done.stderr.count("\n") == 1


def test_a_dry_run_does_nothing():
    done = run([*COMMAND, "--dry-run"])
    assert (done.returncode, done.stdout) == (0, "")
    assert "would" in done.stderr


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({}, 200, b"0123456789"),
        ({"Range": "bytes=4-"}, 206, b"456789"),
        ({"Range": "bytes=4-", "If-Range": '"another"'}, 200, b"0123456789"),
        ({"Range": "bytes=99-"}, 200, b"0123456789"),
    ],
    ids=["whole", "rest", "changed", "beyond"],
)
def test_the_server_answers_ranges_as_the_real_one(tmp_path, headers, status, body):
    (tmp_path / "f").write_bytes(b"0123456789")
    with serve_file(tmp_path / "f", "/a/f.tar.gz") as port:
        answer = requests.get(f"http://127.0.0.1:{port}/a/f.tar.gz", headers=headers, timeout=10)
        assert requests.get(f"http://127.0.0.1:{port}/b", timeout=10).status_code == 404
    assert (answer.status_code, answer.content) == (status, body)
    # md5 of the ten digits is 781e5e245d69b566979b86e28d23f2c7; in base64, as Google Cloud Storage sends it:
    assert "md5=eB5eJF1ptWaXm4bijSPyxw==" in answer.headers["x-goog-hash"]
