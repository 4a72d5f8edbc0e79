"""``convert`` and ``synth`` as a user runs them: output, exit codes, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from ckptkit.families.moat.published import synthetic_tensor
from ckptkit.formats.detect import open_reader
from ckptkit.models.synth import Synthetic, write_archive, write_bundle
from tests.support import preloaded
from tests.support.commands import Runner, runner

COMMAND = [sys.executable, "-m", "ckptkit.cli.app"]


def run(*arguments, cwd=None):
    line = [sys.executable, "-m", "ckptkit", *map(str, arguments)]
    return preloaded.run(line, cwd or Path.cwd(), modules=preloaded.COMMANDS)


def one_line(text):
    """The one error, several faults below it included."""
    lines = [line for line in text.replace("\n  ", " ").splitlines() if line.startswith("error:")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def hidden(folder):
    return [path.name for path in folder.rglob(".ckptkit-*")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    write_bundle(Synthetic("tiny-moat0"), folder / "model.ckpt")
    write_bundle(Synthetic("tiny-moat0", pos_emb=False, twins=True), folder / "twins.ckpt")
    write_bundle(Synthetic("tiny-moat0", bn_statistics=False), folder / "first.ckpt")
    write_archive(Synthetic("tiny-moat0"), folder / "tiny.tar.gz")
    return folder


def names(path):
    with open_reader(path) as reader:
        return set(reader.specs)


@pytest.mark.parametrize("source", ["model.ckpt", "model.ckpt.index", "tiny.tar.gz"])
def test_the_result_is_on_stdout_and_the_rest_on_stderr(folder, tmp_path, source):
    done = run("convert", folder / source, "--to", "safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / done.stdout.strip()
    assert path.parent == tmp_path and path.suffix == ".safetensors"
    assert "361 tensors" in done.stderr and "read back and compared" in done.stderr
    with open_reader(path) as reader:
        kernel = synthetic_tensor("moat/stem/conv_0/kernel", (3, 3, 3, 32))
        np.testing.assert_array_equal(reader.read("stem.conv_0.weight"), kernel.transpose(3, 2, 0, 1))
        assert reader.metadata["format"] == "pt"
        assert len(reader.metadata.get("source_sha256") or reader.metadata["source_index_sha256"]) == 64


def test_a_dry_run_prints_the_plan_and_writes_nothing(folder, tmp_path):
    done = run("convert", folder / "model.ckpt", "--to", "torch", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    row = next(line for line in done.stdout.splitlines() if line.startswith("stages.2.0.attention.q.weight"))
    assert row.split() == [
        "stages.2.0.attention.q.weight",
        "128×128",
        "float32",
        "heads_in",
        "moat/block_02_00/attention/q/weight",
    ]
    assert any("left out: global_step" in line for line in done.stdout.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_file(folder, tmp_path):
    target = tmp_path / "x.safetensors"
    done = run(
        "convert",
        folder / "twins.ckpt",
        "-o",
        target,
        "--weights",
        "raw",
        "--dtype",
        "bfloat16",
        "--no-head",
        "-q",
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(target), "")
    with open_reader(target) as reader:
        assert {spec.dtype.name for spec in reader.specs.values()} == {"bfloat16"}
        assert (reader.metadata["weights"], reader.metadata["num_classes"]) == ("raw", "0")
        assert not [name for name in reader.specs if name.startswith("head")]


def test_shards(folder, tmp_path):
    done = run("convert", folder / "model.ckpt", "--max-shard-size", "5MB", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) >= 3
    assert len(names(tmp_path / done.stdout.strip())) == 361


def test_several_files_go_into_a_folder(folder, tmp_path):
    done = run("convert", folder / "model.ckpt", folder / "tiny.tar.gz", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.safetensors", "tiny.safetensors"]


def test_the_first_uploads_need_consent(folder, tmp_path):
    refused = run("convert", folder / "first.ckpt", "-o", tmp_path / "x.safetensors")
    assert refused.returncode == 5
    assert "--allow-missing-bn" in one_line(refused.stderr)
    done = run("convert", folder / "first.ckpt", "-o", tmp_path / "x.safetensors", "--allow-missing-bn", "-q")
    assert done.returncode == 0
    assert "warning:" in done.stderr and "without BatchNorm statistics" in done.stderr
    with open_reader(tmp_path / "x.safetensors") as reader:
        assert reader.metadata["bn_statistics"] == "missing"


def test_nothing_fetched_nothing_converted():
    done = run("convert", "--to", "safetensors")
    assert (done.returncode, done.stdout) == (3, "")
    assert "nothing has been fetched" in done.stderr


def damaged(folder, tmp_path, kind):
    source = tmp_path / "source"
    source.mkdir()
    data, index = (folder / f"model.ckpt.{end}" for end in ("data-00000-of-00001", "index"))
    for file in (data, index):
        (source / file.name).write_bytes(file.read_bytes())
    data, index = source / data.name, source / index.name
    if kind == "truncated index":
        index.write_bytes(index.read_bytes()[:-10])
    elif kind == "truncated data":
        data.write_bytes(data.read_bytes()[:-1000])
    elif kind == "flipped index byte":
        content = bytearray(index.read_bytes())
        content[len(content) // 2] ^= 1
        index.write_bytes(content)
    elif kind == "flipped data byte":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif kind == "missing data":
        data.unlink()
    elif kind == "empty index":
        index.write_bytes(b"")
    return source / "model.ckpt"


@pytest.mark.parametrize(
    "kind",
    [
        "truncated index",
        "truncated data",
        "flipped index byte",
        "flipped data byte",
        "missing data",
        "empty index",
    ],
)
def test_a_damaged_checkpoint_is_one_line_exit_5_and_no_file(folder, tmp_path, kind):
    source = damaged(folder, tmp_path, kind)
    out = tmp_path / "out"
    out.mkdir()
    done = run("convert", source, "-o", out / "x.safetensors")
    assert done.returncode == 5, done.stderr
    assert "model.ckpt" in one_line(done.stderr)
    assert list(out.iterdir()) == []


def test_an_html_page_named_tar_gz_is_named_as_what_it_is(tmp_path):
    page = tmp_path / "moat.tar.gz"
    page.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    done = run("convert", page, cwd=tmp_path)
    assert done.returncode == 5
    assert "HTML" in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("name", ["../evil.index", "/evil.index"])
def test_an_archive_that_reaches_outside_is_refused(folder, tmp_path, name):
    with tarfile.open(tmp_path / "moat.tar.gz", "w:gz") as archive:
        archive.add(folder / "model.ckpt.index", name)
    done = run("convert", tmp_path / "moat.tar.gz", cwd=tmp_path)
    assert done.returncode == 5
    assert "evil.index" in one_line(done.stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["moat.tar.gz"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.ckpt"], 3, "no such file"),
        (["moat2-348"], 3, "moat2-384"),
        (["{folder}/model.ckpt", "--layout", "onnx"], 3, "choose from torch, deeplab2, keras"),
        (["{folder}/model.ckpt", "--weights", "ema"], 2, "no moving averages"),
        (["{folder}/model.ckpt", "--variant", "tiny-moat1"], 5, "unlike tiny-moat1"),
        (["{folder}/model.ckpt", "--max-shard-size", "huge"], 2, "write it like 500MB"),
        (["{folder}/model.ckpt", "{folder}/tiny.tar.gz", "-o", "one.safetensors"], 2, "give -o FOLDER/"),
    ],
    ids=str,
)
def test_mistakes_get_their_exit_code_and_a_way_out(folder, tmp_path, arguments, code, words):
    done = run("convert", *(a.format(folder=folder) for a in arguments), "--offline", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_a_usage_error(tmp_path):
    assert run("convert", "x", "--to", "onnx").returncode == 2


def test_an_existing_output_needs_force(folder, tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"precious")
    done = run("convert", folder / "model.ckpt", "-o", target)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [one_line(done.stderr)], "refused before anything was begun"
    assert "--force" in done.stderr
    assert target.read_bytes() == b"precious"
    assert run("convert", folder / "model.ckpt", "-o", target, "--force", "-q").returncode == 0
    assert len(names(target)) == 361


def small_files_only():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


@pytest.mark.parametrize("to", ["safetensors", "torch", "tf", "npz"])
def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path, to):
    done = subprocess.run(
        [*COMMAND, "convert", folder / "model.ckpt", "--to", to, "-o", tmp_path / "x.out"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=small_files_only,
    )
    assert done.returncode == 5, done.stderr
    assert "x.out" in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint whose conversion takes long enough to be interrupted."""
    prefix = tmp_path_factory.mktemp("large") / "model.ckpt"
    write_bundle(Synthetic("moat0"), prefix)
    return prefix


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl+C", "SIGKILL"])
def test_interrupted_while_writing(large, tmp_path, number):
    target = tmp_path / "x.safetensors"
    child = subprocess.Popen(
        [*COMMAND, "convert", str(large), "-o", str(target)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 1_000_000 for p in tmp_path.glob(".ckptkit-*")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert not target.exists()
    if number == signal.SIGINT:
        assert child.returncode == 130
        assert "interrupted" in said and "Traceback" not in said
        assert hidden(tmp_path) == []
    assert run("convert", large, "-o", target, "-q").returncode == 0
    assert hidden(tmp_path) == [], "what the killed run left was swept away"
    assert len(names(target)) == 363


def test_synth_writes_what_is_asked_and_says_it_is_synthetic(tmp_path):
    done = run("synth", "tiny-moat0-256-noposemb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "synthetic weights" in done.stderr
    path = tmp_path / done.stdout.strip()
    assert path.name == "tiny-moat0-256-noposemb.tar.gz"
    assert not [name for name in names(path) if "relative_position" in name]
    refused = run("synth", "tiny-moat0-256-noposemb", cwd=tmp_path)
    assert refused.returncode == 2 and "--force" in one_line(refused.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["moat9"], 3, "moat9"),
        (["moganet-xt", "--layout", "deeplab2"], 2, "choose from openmixup, torch"),
        (["tiny-moat0", "--layout", "torch"], 2, "choose from deeplab2"),
        (["moganet-xt", "--no-pos-emb"], 2, "no position embedding"),
        (["moganet-xt", "-o", "x.tar.gz"], 2, "a PyTorch file; give -o x.pth"),
        (["moganet-xt", "-o", "x.npz"], 2, "a PyTorch file; give -o x.pth"),
        (["moganet-xt-224-timm", "-o", "x.keras"], 2, "a PyTorch file; give -o x.pth.tar"),
        (["tiny-moat0", "-o", "foo.safetensors"], 2, "a TensorFlow checkpoint; give -o foo.ckpt"),
        (["tiny-moat0", "-o", "out/mf.pth"], 2, "a TensorFlow checkpoint; give -o out/mf.ckpt"),
        (["tiny-moat0", "-o", "mf.ckpt.index"], 2, "a TensorFlow checkpoint; give -o mf.ckpt"),
        (["tiny-moat0", "-o", "gs://b/x.onnx"], 2, "give -o gs://b/x.ckpt"),
    ],
    ids=str,
)
def test_synth_of_what_cannot_be(tmp_path, arguments, code, says):
    done = run("synth", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert says in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "name", "state_dicts"),
    [
        (["moganet-xt-224"], "moganet-xt-224.pth", {"state_dict": 705}),
        (["moganet-xt", "--ema"], "moganet-xt.pth", {"state_dict": 1275}),
        (["moganet-xt-224-timm"], "moganet-xt-224-timm.pth.tar", {"state_dict": 705}),
        (
            ["moganet-xt", "--layout", "torch", "--ema"],
            "moganet-xt.pth.tar",
            {"state_dict": 705, "state_dict_ema": 705},
        ),
    ],
    ids=str,
)
def test_synth_of_moganet_is_shaped_as_its_releases(tmp_path, arguments, name, state_dicts):
    done = run("synth", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr
    counts = {}
    for state_dict in state_dicts:
        with open_reader(tmp_path / name, state_dict=state_dict) as reader:
            assert set(reader.state_dicts) == set(state_dicts)
            counts[state_dict] = len(reader.specs)
    assert counts == state_dicts


FOREIGN = {
    "net/conv/kernel": np.arange(144, dtype=np.float32).reshape(3, 3, 4, 4),
    "net/conv/bias": np.arange(4, dtype=np.float64),
    "step": np.array(7, np.int64),
}
RULES = """\
rules:
  - {source: "net/conv/kernel", target: "conv.weight", op: conv}
  - {source: "net/conv/bias", target: "conv.bias", op: identity}
ignore:
  - {name: step counter, pattern: step, reason: counts training steps}
"""


@pytest.fixture
def foreign(tmp_path):
    np.savez(tmp_path / "net.npz", **FOREIGN)
    return tmp_path / "net.npz"


def test_a_model_of_no_known_family_is_pointed_to_as_is(foreign, tmp_path):
    done = run("convert", foreign, "--to", "torch", cwd=tmp_path)
    assert done.returncode == 5
    assert "--layout as-is" in one_line(done.stderr) and "--rules FILE" in one_line(done.stderr)
    done = run("convert", foreign, "--to", "torch", "--layout", "as-is", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "net.pth"), done.stderr
    assert "npz → torch/as-is, 3 tensors" in done.stderr
    with open_reader(tmp_path / "net.pth") as reader:
        assert {name: reader.read(name).tolist() for name in reader.specs} == {
            name: array.tolist() for name, array in FOREIGN.items()
        }
        assert reader.metadata["layout"] == "as-is" and len(reader.metadata["source_sha256"]) == 64


def test_a_known_family_is_carried_as_is_only_when_asked(folder, tmp_path):
    with open_reader(folder / "model.ckpt") as reader:
        wanted = set(reader.specs)
    done = run("convert", folder / "model.ckpt", "--layout", "as-is", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / done.stdout.strip()) == wanted
    with open_reader(tmp_path / done.stdout.strip()) as reader:
        assert len(reader.metadata["source_index_sha256"]) == 64


def test_rules_of_ones_own_both_ways(foreign, tmp_path):
    (tmp_path / "rules.yaml").write_text(RULES)
    done = run("convert", foreign, "--rules", "rules.yaml", "--to", "torch", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "h w i o → o i h w" in done.stdout and "left out: step counter" in done.stdout
    assert not (tmp_path / "net.pth").exists()
    done = run("convert", foreign, "--rules", "rules.yaml", "--to", "torch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 left out by rule" in done.stderr
    with open_reader(tmp_path / "net.pth") as reader:
        turned = np.einsum("hwio->oihw", FOREIGN["net/conv/kernel"])
        np.testing.assert_array_equal(reader.read("conv.weight"), turned)
        np.testing.assert_array_equal(reader.read("conv.bias"), FOREIGN["net/conv/bias"])
    back = ("convert", "net.pth", "--rules", "rules.yaml", "--reverse", "--to", "npz", "-o", "back.npz")
    done = run(*back, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "back.npz") as archive:
        assert set(archive) == {"net/conv/kernel", "net/conv/bias"}
        np.testing.assert_array_equal(archive["net/conv/kernel"], FOREIGN["net/conv/kernel"])


def test_rules_of_ones_own_into_shards_and_back(foreign, tmp_path, capsys):
    (tmp_path / "rules.yaml").write_text(RULES)
    by_rules = ("convert", "--rules", tmp_path / "rules.yaml")
    there = runner(capsys)(*by_rules, foreign, "-o", tmp_path / "net.bin", "--max-shard-size", "1")
    assert there.code == 0, there.err
    index = tmp_path / "net.bin.index.json"
    homes = {"conv.weight": "net-00001-of-00002.bin", "conv.bias": "net-00002-of-00002.bin"}
    assert json.loads(index.read_text())["weight_map"] == homes
    back = runner(capsys)(*by_rules, "--reverse", index, "-o", tmp_path / "back.npz")
    assert back.code == 0, back.err
    with np.load(tmp_path / "back.npz") as archive:
        np.testing.assert_array_equal(archive["net/conv/kernel"], FOREIGN["net/conv/kernel"])


def test_what_is_left_out_and_what_else_is_in_the_file_are_named(foreign, tmp_path, capsys):
    """As Lightning leaves it: beside the state dict there is all that training needs."""
    torch = pytest.importorskip("torch")
    beside = {"epoch": 3, "callbacks": {}, **{f"h{i}": i for i in range(9)}}
    torch.save({"state_dict": {"w": torch.ones(2)}, **beside}, tmp_path / "m.ckpt")
    carried = runner(capsys)("convert", tmp_path / "m.ckpt", "--layout", "as-is", "-o", tmp_path / "m.npz")
    assert carried.code == 0
    said = "also in the file, not converted: epoch, callbacks, h0, h1, h2, h3, h4, h5 and 3 more"
    assert said in carried.err
    everything = ("--verbose", "convert", tmp_path / "m.ckpt", "--layout", "as-is", "--dry-run")
    assert "h5, h6, h7, h8\n" in runner(capsys)(*everything).err
    (tmp_path / "rules.yaml").write_text(RULES)
    named = runner(capsys)("convert", foreign, "--rules", tmp_path / "rules.yaml", "-o", tmp_path / "n.pth")
    assert "left out by rule: step counter: counts training steps: step\n" in named.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--layout", "as-is", "--no-head"], 2, "--no-head cannot be used with --layout as-is"),
        (["--layout", "as-is", "--to", "keras", "--weights", "raw"], 2, "has no raw weights"),
        (["--reverse"], 2, "--reverse requires --rules"),
        (["--rules", "gone.yaml"], 3, "gone.yaml: no such file of rules"),
        (["--rules", "rules.yaml", "--reverse"], 5, "3 tensors fit no rule"),
        (["--rules", "rules.yaml", "--layout", "as-is"], 2, "--layout as-is cannot be used with --rules"),
        (["--rules", "broken.yaml"], 2, "broken.yaml: 1 fault: line 2: rules[0].target is missing"),
    ],
    ids=str,
)
def test_what_as_is_and_rules_refuse(foreign, tmp_path, arguments, code, says):
    (tmp_path / "rules.yaml").write_text(RULES.replace("pattern: step,", "pattern: never,"))
    (tmp_path / "broken.yaml").write_text("rules:\n  - {source: a, op: identity}\n")
    done = run("convert", foreign, *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert says in one_line(done.stderr)
    assert {path.name for path in tmp_path.iterdir()} == {"net.npz", "rules.yaml", "broken.yaml"}


# -- names on the way out ------------------------------------------------------------------------------------


@pytest.fixture
def ckptkit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


AS_IS = ["--layout", "as-is"]


@pytest.mark.parametrize(
    ("output", "options", "format"),
    [
        ("a.pth", [], "torch"),
        ("A.PT", [], "torch"),
        ("a.bin", [], "torch"),
        ("a.pth.tar", [], "torch"),
        ("a.npz", [], "npz"),
        ("a.ckpt", [], "tf"),
        ("a.ckpt", ["--to", "pytorch"], "torch"),
        ("a.safetensors", [], "safetensors"),
        ("new.dir/deep/a.npz", [], "npz"),
        ("a", ["--to", "np"], "npz"),
        ("-a.pth", [], "torch"),
    ],
    ids=str,
)
def test_the_ending_of_the_output_decides_the_format(ckptkit, foreign, output, options, format):
    done = ckptkit("convert", foreign, *AS_IS, *options, "-o", output)
    assert (done.code, done.out) == (0, f"{output}\n"), done.err
    with open_reader(Path(output)) as reader:
        assert reader.format == format
        assert reader.read("net/conv/bias").tolist() == FOREIGN["net/conv/bias"].tolist()


@pytest.mark.parametrize("source", [".", "./", ".."])
def test_the_source_is_where_one_is(ckptkit, tmp_path, monkeypatch, source):
    np.savez("net.npz", **FOREIGN)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below" if source == ".." else tmp_path)
    done = ckptkit("convert", source, *AS_IS, "-o", "a.safetensors")
    assert (done.code, done.out) == (0, "a.safetensors\n"), done.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["-o", "k.pth", "--to", "safetensors"], "give -o k.safetensors, or --to torch"),
        (["-o", "k.safetensors", "--to", "torch"], "give -o k.pth, or --to safetensors"),
        (["-o", "k.keras"], "give -o k.weights.h5"),
        (["-o", "k.h5", "--to", "keras"], "give -o k.weights.h5"),
        (["-o", "k.onnx"], "net.npz --to onnx -o k.onnx"),
        (["-o", "k.gguf", "--to", "torch"], "give -o k.pth"),
        (["-o", "k.foo"], "or give --to"),
        (["-o", "k"], "or give --to"),
        (["-o", "k.pth/m.safetensors.index.json"], "give -o k.pth/m.safetensors --max-shard-size 5GB"),
        (["-o", "s3://bucket/k.keras"], "give -o s3://bucket/k.weights.h5"),
        (["-o", "s3://bucket/k.h5", "--to", "keras"], "give -o s3://bucket/k.weights.h5, or --to keras2"),
        (["-o", "k.npz", "--max-shard-size", "1GB"], "only safetensors, torch, keras and dcp have shards"),
        (["-o", "net.npz", "--force"], "give another --output"),
        (["-o", "./net.npz", "--force"], "net.npz is the source itself"),
        (["-o", "folder.npz"], "give -o folder.npz/ to write into it"),
    ],
    ids=str,
)
def test_names_that_cannot_be_written(ckptkit, foreign, tmp_path, arguments, hint):
    (tmp_path / "folder.npz").mkdir()
    before = foreign.read_bytes()
    done = ckptkit("convert", foreign, *AS_IS, *arguments)
    assert (done.code, done.out) == (2, ""), done.err
    assert hint in one_line(done.err)
    assert foreign.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.npz", "net.npz"]
    assert not any((tmp_path / "folder.npz").iterdir())


@pytest.mark.parametrize("output", ["new/", "new.pth/", "there", "there/", "new/deep/"])
def test_a_slash_or_a_folder_takes_the_default_name(ckptkit, foreign, tmp_path, output):
    (tmp_path / "there").mkdir()
    done = ckptkit("convert", foreign, *AS_IS, "-o", output)
    assert (done.code, done.out.strip()) == (0, str(Path(output) / "net.safetensors")), done.err
    with open_reader(tmp_path / output / "net.safetensors") as reader:
        assert set(reader.specs) == set(FOREIGN)


@pytest.mark.parametrize(
    ("other", "output", "says"),
    [
        ("b/net.npz", "out/", "net.npz and b/net.npz would both be written to out/net.safetensors"),
        ("b/NET.npz", "out/", "would both be written to out/NET.safetensors"),
        ("b/net.npz", None, "would both be written to net.safetensors"),
        ("b/other.npz", "out.npz", "is one file, but there are 2 results"),
        ("b/other.npz", "-", "is one file, but there are 2 results"),
        ("b/net.safetensors", "b/", "b/net.safetensors would replace b/net.safetensors"),
    ],
    ids=str,
)
def test_results_that_would_meet_are_found_before_anything_is_written(ckptkit, foreign, other, output, says):
    Path("b").mkdir()
    shutil.copy(foreign, other)
    before = sorted(Path().rglob("*"))
    options = [] if output is None else ["-o", output]
    done = ckptkit("convert", foreign, other, *AS_IS, "--force", *options)
    assert done.code == 2, done.err
    assert says in one_line(done.err).replace(f"{foreign.parent}/", "")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("output", ["out", "out/", None])
def test_results_of_several_names(ckptkit, foreign, output):
    shutil.copy(foreign, "other.npz")
    options = [] if output is None else ["-o", output]
    done = ckptkit("convert", foreign, "other.npz", *AS_IS, *options)
    assert done.code == 0, done.err
    assert [Path(line).name for line in done.out.splitlines()] == ["net.safetensors", "other.safetensors"]


def test_what_exists_is_found_before_the_first_is_written(ckptkit, foreign):
    shutil.copy(foreign, "other.npz")
    Path("out").mkdir()
    Path("out/other.ckpt.index").write_text("mine")
    done = ckptkit("convert", foreign, "other.npz", *AS_IS, "--to", "tf", "-o", "out")
    assert done.code == 2 and "out/other.ckpt.index exists already" in done.err
    assert [path.name for path in Path("out").iterdir()] == ["other.ckpt.index"]


def test_a_prefix_of_an_input_is_not_replaced(ckptkit, foreign, tmp_path):
    assert ckptkit("convert", foreign, *AS_IS, "-o", "m.ckpt").code == 0
    before = (tmp_path / "m.ckpt.index").read_bytes()
    for source in ("m.ckpt", "m.ckpt.index"):
        refused = ckptkit("convert", source, *AS_IS, "--to", "tf", "-o", "m.ckpt", "--force")
        assert refused.code == 2 and "give another --output" in refused.err
    assert (tmp_path / "m.ckpt.index").read_bytes() == before


def test_a_published_stand_in_goes_where_it_is_told(ckptkit, tmp_path):
    assert ckptkit("synth", "tiny-moat0", "-o", "new/").out == "new/tiny-moat0.tar.gz\n"
    assert ckptkit("synth", "tiny-moat0", "-o", "new/m.TGZ").out == "new/m.TGZ\n"
    assert (tmp_path / "new/m.TGZ").read_bytes()[:2] == b"\x1f\x8b"
    assert ckptkit("synth", "tiny-moat0", "-o", "new").code == 2, "it exists"
    assert ckptkit("synth", "tiny-moat0", "-o", "prefix").out == "prefix\n"
    assert (tmp_path / "prefix.index").is_file()
