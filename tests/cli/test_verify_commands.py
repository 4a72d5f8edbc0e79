"""``verify`` and ``inspect`` on the command line: what is printed and returned, and that nothing changes."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ckptkit.cli.app import main
from ckptkit.store.cache import Home
from tests.support.moat_files import data_offset, flip_byte, write_tiny
from tests.support.running import registry_file

KERNEL = "moat/block_01_00/expand_conv/kernel"
ID = "test-tiny"


@dataclass
class Run:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Return a function that runs ckptkit in this process."""

    def run(*arguments: str | Path) -> Run:
        capsys.readouterr()
        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("sound") / "model.ckpt")


@pytest.fixture(scope="module")
def archive(sound) -> Path:
    path = sound.parent / "tiny.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as file:
        for part in sorted(sound.parent.glob("model.ckpt.*")):
            file.add(part, f"tiny/{part.name}")
    return path


@pytest.fixture
def fetched(run, archive, tmp_path) -> Path:
    """Fetch the archive as an entry into the test's cache; gives the registry it stands in."""
    overlay = registry_file(
        tmp_path,
        {
            "id": ID,
            "sources": [{"url": archive.as_uri()}],
            "pos_emb": True,
            "exact_parameters": 3_355_348,
            "published_params": "3.4M",
        },
    )
    assert run("fetch", ID, "--registry", overlay).code == 0
    return overlay


def artefact() -> Path:
    record = Home.default().record(ID)
    return Home.default().artefact(record)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_fetched_entry_holds(run, fetched):
    done = run("verify", ID, "--deep", "--registry", fetched)
    assert done.code == 0
    assert "as first fetched (no checksum is published for it" in done.out
    assert "362 agree with their crc32c" in done.out
    assert done.out.splitlines()[-1] == f"{ID}: passed 6 checks"


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_changed_artefact_fails_and_is_left_as_it_is(run, fetched, damage):
    path = artefact()
    if damage == "flip":
        flip_byte(path, path.stat().st_size // 2)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    before = snapshot(Home.default().path)
    done = run("verify", ID, "--registry", fetched)
    assert done.code == 1
    assert "but at its first fetch it was" in done.out
    assert done.out.splitlines()[-1] == f"{ID}: failed: checksum"
    assert snapshot(Home.default().path) == before


def test_a_pin_that_disagrees_fails(run, fetched, tmp_path):
    pinned = tmp_path / "pinned.yaml"
    pinned.write_text(
        f"entries:\n  - id: {ID}\n    sha256: '{'ab' * 32}'\n    hash_provenance:\n"
        "      observed_at: 2026-01-02T03:04:05Z\n      url: https://a.org/x\n"
    )
    done = run("verify", ID, "--registry", fetched, "--registry", pinned)
    assert done.code == 1
    assert f"but the registry says {'ab' * 32}" in done.out


def test_an_archive_whose_unpacked_copy_went_away_is_read_itself(run, fetched):
    for path in Home.default().unpacked_folder(ID).rglob("*.index"):
        path.unlink()
    done = run("verify", ID, "--deep", "--json", "--registry", fetched)
    assert done.code == 0
    assert json.loads(done.out)[0]["path"] == str(artefact())


def test_all_takes_every_fetched_entry(run, fetched):
    done = run("verify", "--all", "--json", "--registry", fetched)
    assert done.code == 0
    assert [report["entry"] for report in json.loads(done.out)] == [ID]


def test_all_takes_an_entry_whose_file_was_cut(run, fetched):
    artefact().write_bytes(b"short")
    done = run("verify", "--all", "--registry", fetched)
    assert done.code == 1
    assert f"{ID}: failed: checksum" in done.out


def test_a_path_in_the_cache_is_its_entrys(run, fetched):
    done = run("verify", artefact(), "--json", "--registry", fetched)
    (report,) = json.loads(done.out)
    assert (report["entry"], report["ok"]) == (ID, True)


def write_page(folder: Path) -> Path:
    path = folder / "moat.tar.gz"
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["moat0-224"], (3, "moat0-224 is not in the cache. Run: ckptkit fetch moat0-224")),
        (["moat0-225"], (3, "did you mean moat0-224")),
        (["./nothing.index"], (3, "no such file")),
        ([], (2, "nothing to verify; name ids or files, or give --all")),
        (["--all"], (3, "nothing has been fetched yet")),
        (["SOUND", "--weights", "ema"], (2, "no moving averages")),
        (["SOUND", "--variant", "moat9"], (3, "unknown variant 'moat9'")),
        (["PAGE"], (5, "HTML")),
    ],
)
def test_what_cannot_be_verified(run, sound, tmp_path, arguments, expected):
    code, says = expected
    names = {"SOUND": str(sound), "PAGE": str(write_page(tmp_path))}
    done = run("verify", *(names.get(argument, argument) for argument in arguments))
    assert done.code == code
    assert says in done.err
    assert done.err.splitlines()[-1].startswith("error: ")
    assert done.out == ""


def test_a_failed_check_returns_1_and_is_listed(run, tmp_path):
    def plant(tensors):
        tensors[KERNEL].reshape(-1)[:2] = math.nan

    done = run("verify", write_tiny(tmp_path / "m", plant))
    assert done.code == 1
    lines = [line.split() for line in done.out.splitlines()]
    assert ["values", "failed"] in [line[:2] for line in lines]
    assert [f"{KERNEL}:", "2", "NaN"] in lines
    assert done.out.splitlines()[-1] == f"{tmp_path}/m: failed: values; skipped: checksum"


def test_damaged_tensors_return_5_and_are_all_listed(run, tmp_path):
    prefix = write_tiny(tmp_path / "m")
    for name in (KERNEL, "moat/logits_head/kernel"):
        flip_byte(Path(f"{prefix}.data-00000-of-00001"), data_offset(prefix, name))
    assert run("verify", prefix).code == 0
    done = run("verify", prefix, "--deep", "--json")
    assert done.code == 5
    (report,) = json.loads(done.out)
    (container,) = (check for check in report["checks"] if check["name"] == "container")
    assert report["damaged"] is True
    assert all(
        name in item for name, item in zip((KERNEL, "logits_head/kernel"), container["items"], strict=True)
    )
    assert len(container["items"]) == 2


def test_one_bad_target_does_not_hide_the_others(run, sound, tmp_path):
    done = run("verify", write_page(tmp_path), sound, "moat0-224")
    assert done.code == 5
    assert "passed 5 of 6 checks" in done.out
    assert "warning: moat0-224 could not be verified" in done.err
    values = json.loads(run("verify", write_page(tmp_path), sound, "moat0-224", "--json").out)
    assert [value["ok"] for value in values] == [False, True, False]
    assert [value.get("exit_code") for value in values] == [5, None, 3]


def test_long_lists_are_cut_unless_verbose(run, tmp_path):
    def plant(tensors):
        for name in [name for name in tensors if "/moving_" in name]:
            del tensors[name]

    prefix = write_tiny(tmp_path / "m", plant)
    short, long = run("verify", prefix), run("verify", prefix, "--verbose")
    assert short.out.count("missing: ") == 8
    assert "… and 78 more; --verbose shows all" in short.out
    assert long.out.count("missing: ") == 86
    assert short.code == long.code == 1


def test_inspect_summary(run, sound):
    done = run("inspect", sound, "--summary")
    assert done.code == 0
    assert "recognised  moat, tiny-moat0, layout deeplab2, with position embedding, 1,000 classes" in done.out
    assert "parameters  3,355,348 trainable in tiny-moat0" in done.out
    assert KERNEL not in done.out


def test_inspect_lists_tensors_with_figures_and_other_names(run, tmp_path):
    def plant(tensors):
        tensors["moat/stem/conv_0/bias"][:] = np.arange(32) - 1
        tensors["moat/stem/conv_0/bias"][0] = math.nan

    prefix = write_tiny(tmp_path / "m", plant)
    done = run("inspect", prefix, "conv_0/bias", "--stats", "--layout", "torch")
    (row,) = (line.split() for line in done.out.splitlines() if line.startswith("moat/"))
    expected = ["moat/stem/conv_0/bias", "stem.conv_0.bias", "32", "float32", "128", "B"]
    assert row == [*expected, "0", "30", "15", "8.944", "1", "1", "0"]


def test_inspect_json(run, sound):
    values = json.loads(run("inspect", sound, "*/kernel", "--json", "--sort", "size").out)
    assert values["totals"]["tensors"] == 362
    assert values["tensors"][0]["name"] == "moat/block_03_00/shrink_conv/kernel"
    assert values["tensors"][0]["shape"] == [1, 1, 1024, 256]
    assert "tensors" not in json.loads(run("inspect", sound, "--json", "--summary").out)


def test_inspect_an_entry(run, fetched):
    done = run("inspect", ID, "--summary", "--registry", fetched)
    assert done.code == 0
    assert "tiny-moat0" in done.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["moat0-224"], (3, "is not in the cache")),
        (["PAGE"], (5, "HTML")),
        (["SOUND", "nothing*"], (3, "none of its 362 tensors")),
        (["SOUND", "--layout", "caffe"], (3, "no layout 'caffe'")),
    ],
)
def test_what_cannot_be_inspected(run, sound, tmp_path, arguments, expected):
    code, says = expected
    names = {"SOUND": str(sound), "PAGE": str(write_page(tmp_path))}
    done = run("inspect", *(names.get(argument, argument) for argument in arguments))
    assert (done.code, done.out) == (code, "")
    assert says in done.err


def test_control_characters_in_a_files_names_do_not_reach_the_terminal(run, tmp_path):
    from safetensors.numpy import save_file

    name = "weight\x1b[2J\nrunning_var"
    save_file({name: np.zeros((2, 2), "f4")}, tmp_path / "a.safetensors", metadata={"origin": "\x1b]0;x\x07"})
    for done in (run("inspect", tmp_path / "a.safetensors"), run("verify", tmp_path / "a.safetensors")):
        assert "\x1b" not in done.out
        assert "weight\\x1b[2J\\nrunning_var" in done.out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_no_name_is_cut_on_a_terminal_of_any_width(sound, monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main(["inspect", str(sound), "block_02_00/attention", "--stats", "--layout", "torch", "--quiet"])
    shown = terminal.getvalue()
    for name in ("moat/block_02_00/attention/relative_position_embedding", "stages.2.0.attention.q.weight"):
        assert name in shown
    assert "…" not in shown


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_that_may_not_be_read(run, tmp_path):
    path = tmp_path / "secret.safetensors"
    path.write_bytes(b"x" * 100)
    path.chmod(0)
    done = run("verify", path)
    assert done.code == 5
    assert "permission denied" in done.err
