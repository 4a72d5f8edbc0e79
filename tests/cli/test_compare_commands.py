"""``verify``, ``inspect`` and ``diff`` on the command line: what is printed and returned, and no change."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ckptkit.cli.app import main
from ckptkit.store.cache import Home
from tests.support.commands import runner
from tests.support.moat_files import data_offset, flip_byte, write_tiny
from tests.support.running import registry_file

KERNEL = "moat/block_01_00/expand_conv/kernel"
ID = "test-tiny"


@pytest.fixture
def run(capsys):
    return runner(capsys)


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
    assert "as first fetched, which was taken on trust: no checksum of this file is published\n" in done.out
    assert "362 agree with their crc32c" in done.out
    assert done.out.splitlines()[0] == f"{ID}: passed 6 checks"


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
    assert done.out.splitlines()[0] == f"{ID}: failed: checksum"
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
    assert ["failed", "values"] in [line[:2] for line in lines]
    assert [f"{KERNEL}:", "2", "NaN"] in lines
    assert done.out.splitlines()[0] == f"{tmp_path}/m: failed: values; skipped: checksum"


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
        (["SOUND", "--layout", "caffe"], (3, "unknown moat layout 'caffe'")),
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


# -- diff --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moat(tmp_path_factory) -> Path:
    """Folder with a TensorFlow checkpoint and its conversion, by commands of our own."""
    folder = tmp_path_factory.mktemp("moat")
    write_tiny(folder / "model.ckpt")
    with pytest.raises(SystemExit) as left:
        main(["convert", str(folder / "model.ckpt"), "--output", str(folder / "moat.safetensors"), "--quiet"])
    assert not left.value.code
    return folder


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """Two files that differ in every way."""
    a = {"gone": np.zeros((2, 3), "float32"), "turned": np.zeros((2, 3), "float32")}
    a |= {"half": np.array([1, 3], "float32"), "w": np.array([2, -8], "float32"), "b": np.ones(4, "float32")}
    b = {"new": np.zeros((), "int64"), "turned": np.zeros((3, 2), "float32"), "b": np.ones(4, "float32")}
    b |= {"half": np.array([1, 3.5], "float16"), "w": np.array([np.nan, -8.5], "float32")}
    save_file(a, tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", **b)
    return tmp_path / "a.safetensors", tmp_path / "b.npz"


def table(text: str, heading: str) -> list[list[str]]:
    """Rows of the table under a heading, cells apart."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading + " ("))
    rows = []
    for line in lines[start + 2 :]:
        if not line:
            break
        rows.append(re.split(r"\s{2,}", line.strip()))
    return rows


def test_a_conversion_is_the_same_though_everything_is_called_otherwise(run, moat):
    done = run("diff", moat / "model.ckpt", moat / "moat.safetensors")
    assert done.code == 0
    assert done.out.splitlines() == [
        "same: 361 tensors, bit for bit; left out by rule: 1 in A",
        f"A         {moat}/model.ckpt: tf, tiny-moat0, layout deeplab2, 362 tensors",
        f"B         {moat}/moat.safetensors: safetensors, tiny-moat0, layout torch, 361 tensors",
        "paired    361 tensors by their place in the architecture, others by name",
        "left out  1 in A, global_step: counts training steps",
    ]
    assert done.err.startswith("comparing ")


def test_every_kind_of_difference(run, pair):
    done = run("diff", *pair, "--quiet")
    assert done.code == 1
    assert done.err == ""
    assert "paired    4 tensors by name" in done.out
    assert table(done.out, "only in A") == [["gone", "2×3", "float32"]]
    assert table(done.out, "only in B") == [["new", "scalar", "int64"]]
    assert table(done.out, "other shape") == [["turned", "2×3 float32", "3×2 float32"]]
    half = ["half", "2 float32", "2 float16", "0.5", "0.167", "1 of 2"]
    assert table(done.out, "other dtype") == [half]
    assert table(done.out, "other values") == [["w", "2", "0.5", "0.0625", "2 of 2", "1 NaN in B only"]]
    assert done.out.splitlines()[0] == (
        "differ: 1 only in A; 1 only in B; 1 of 4 tensors in both has other shape; "
        "1 of 4 tensors in both has other dtype; 1 of 4 tensors in both has other values"
    )


def test_verbose_says_where_and_how_both_files_call_it(run, moat, tmp_path):
    arrays = {name: array.copy() for name, array in load_file(moat / "moat.safetensors").items()}
    arrays["head.bias"][7] = 4.5
    save_file(arrays, tmp_path / "b.safetensors")
    before = load_file(moat / "moat.safetensors")["head.bias"][7]
    done = run("diff", moat / "model.ckpt", tmp_path / "b.safetensors", "--verbose")
    ((name, in_a, in_b, shape, *_, differing, where),) = table(done.out, "other values")
    assert (name, in_a, in_b, shape) == ("head.bias", "moat/logits_head/bias", "head.bias", "1000")
    assert differing == "1 of 1,000"
    assert where == f"largest at [7]: {float(before):g} and 4.5"
    assert table(done.out, "left out by rule, in A")[0][0] == "global_step"


def test_diff_summary_has_counts_only(run, pair):
    done = run("diff", *pair, "--summary", "--quiet")
    assert done.code == 1
    assert [line.split()[0] for line in done.out.splitlines()] == ["differ:", "A", "B", "paired"]


def test_diff_json(run, pair):
    done = run("diff", *pair, "--json")
    values = json.loads(done.out, parse_constant=pytest.fail)
    assert (done.code, values["same"], values["paired_by"]) == (1, False, "names")
    assert values["counts"]["paired"] == 4
    assert {one["name"]: one["kind"] for one in values["changed"]} == {
        "turned": "shape",
        "half": "dtype",
        "w": "values",
    }
    short = json.loads(run("diff", *pair, "--json", "--summary").out)
    assert "changed" not in short
    assert short["counts"] == values["counts"]


def test_a_tolerance_turns_the_answer(run, tmp_path):
    for letter, value in (("a", 1.0), ("b", 1.25)):
        save_file({"x": np.array([value, 2], "float32")}, tmp_path / f"{letter}.safetensors")
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert run("diff", *files).code == 1
    assert run("diff", *files, "--tolerance", "0.2").code == 1
    done = run("diff", *files, "--tolerance", "0.25")
    assert done.code == 0
    assert done.out.splitlines()[0] == (
        "same: 1 tensor, 0 bit for bit, 1 within the tolerance (max abs 0.25)"
    )
    assert run("diff", *files, "--relative", "0.125").code == 0
    assert run("diff", *files, "--relative", "0.12").code == 1


def test_differences_are_cut_worst_first_unless_verbose(run, tmp_path):
    ones = {f"t{i:02d}": np.ones(3, "float32") for i in range(30)}
    save_file(ones, tmp_path / "a.safetensors")
    save_file({n: a + np.float32(i) for i, (n, a) in enumerate(ones.items())}, tmp_path / "b.safetensors")
    short = run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    rows = table(short.out, "other values")
    assert [row[0] for row in rows[:3]] == ["t29", "t28", "t27"]
    assert rows[20] == ["… and 9 more; --verbose shows all"]
    long = run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--verbose")
    assert len(table(long.out, "other values")) == 29


def test_metadata_and_settings(run, moat, tmp_path):
    arrays = load_file(moat / "moat.safetensors")
    for letter, size in (("a", "2"), ("b", "3")):
        save_file(arrays, tmp_path / f"{letter}.safetensors", {"pool_size": size, "layout": letter})
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    plain = run("diff", *files)
    assert plain.code == 0
    assert "note: pool_size is 2 in A, 3 in B: models built from them compute different things" in plain.err
    done = run("diff", *files, "--metadata")
    assert done.code == 1
    assert table(done.out, "other metadata") == [
        ["layout", "a", "b", "does not count: how the file was made"],
        ["pool_size", "2", "3"],
    ]
    assert done.out.splitlines()[0] == "differ: metadata (1)"


def test_options_of_diff_reach_the_comparison(run, moat):
    files = (moat / "model.ckpt", moat / "moat.safetensors")
    assert run("diff", *files, "--everything").code == 1
    assert run("diff", *files, "--layout", "as-is").code == 1
    done = run("diff", *files, "--only", "head", "--quiet")
    assert (done.code, done.out.splitlines()[0]) == (0, "same: 2 tensors, bit for bit")
    assert "looked at only what matches 'head'" in done.out


def test_an_entry_is_compared_as_it_was_fetched(run, moat, tmp_path):
    archive = tmp_path / "tiny.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as file:
        for part in sorted(moat.glob("model.ckpt.*")):
            file.add(part, f"tiny/{part.name}")
    entry = {"id": "test-tiny", "sources": [{"url": archive.as_uri()}], "pos_emb": True}
    overlay = registry_file(tmp_path, entry)
    assert run("fetch", "test-tiny", "--registry", overlay).code == 0
    done = run("diff", "test-tiny", moat / "moat.safetensors", "--registry", overlay)
    assert done.code == 0
    assert "\nA         test-tiny: tf, tiny-moat0" in done.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["moat0-224", "MODEL"], (3, "moat0-224 is not in the cache. Run: ckptkit fetch moat0-224")),
        (["MODEL", "moat0-225"], (3, "did you mean moat0-224")),
        (["MODEL", "./nothing.pth"], (3, "no such file")),
        (["PAGE", "MODEL"], (5, "HTML")),
        (["MODEL", "DAMAGED"], (5, f"tensor '{KERNEL}': checksum (crc32c) differs: damaged")),
        (["MODEL", "MODEL", "--only", "nothing"], (3, "no tensor of")),
        (["MODEL", "MODEL", "--weights", "ema"], (2, "no moving averages")),
        (["MODEL", "MODEL", "--tolerance", "-1"], (2, "invalid --tolerance -1.0; use 0 or more")),
        (["MODEL", "MODEL", "--relative", "nan"], (2, "invalid --relative nan; use 0 or more")),
        (["MODEL"], (2, "B")),
    ],
)
def test_what_cannot_be_compared(run, moat, tmp_path, arguments, expected):
    code, says = expected
    page = tmp_path / "moat.tar.gz"
    page.write_text("<!DOCTYPE html><html><body>404</body></html>")
    damaged = write_tiny(tmp_path / "damaged.ckpt")
    flip_byte(Path(f"{damaged}.data-00000-of-00001"), data_offset(damaged, KERNEL))
    names = {"MODEL": str(moat / "model.ckpt"), "PAGE": str(page), "DAMAGED": str(damaged)}
    done = run("diff", *(names.get(argument, argument) for argument in arguments))
    assert done.code == code
    assert says in done.err
    assert done.out == ""


def test_control_characters_in_a_files_names_do_not_reach_the_terminal_by_diff(run, tmp_path):
    save_file({"w\x1b[2J\nx": np.ones(2, "f4")}, tmp_path / "a.safetensors", {"k\x1b]0;x\x07": "\x1b[2J"})
    save_file({"v": np.ones(2, "f4")}, tmp_path / "b.safetensors")
    done = run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--metadata")
    assert "\x1b" not in done.out
    assert "w\\x1b[2J\\nx" in done.out


@pytest.mark.parametrize("columns", [50, 120, 200])
def test_no_name_is_cut_on_a_terminal_of_any_width_by_diff(moat, tmp_path, monkeypatch, columns):
    name = "stages.2.1.attention.q.weight"
    arrays = load_file(moat / "moat.safetensors")
    save_file(arrays | {name: arrays[name] + 1}, tmp_path / "b.safetensors")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main(["diff", str(moat / "model.ckpt"), str(tmp_path / "b.safetensors"), "--quiet"])
    shown = terminal.getvalue()
    assert name in shown
    assert "16,384 of 16,384" in shown
    assert "…" not in shown


def test_diff_needs_no_framework(moat):
    code = (
        "import sys\nfrom ckptkit.cli.app import main\n"
        f"try:\n    main(['diff', {str(moat / 'model.ckpt')!r}, {str(moat / 'moat.safetensors')!r}])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'tensorflow', 'keras', 'requests'} & set(sys.modules)))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines()[-1] == "[]"
