"""``ckptkit parity`` as users and CI jobs call it: words, JSON, JUnit, exit codes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ckptkit.cli.app import main
from tests.support.commands import pip_install
from tests.support.moat_files import write_tiny
from tests.support.moat_reference import GOLDEN_FOLDER
from tests.support.parity_cases import OUTPUTS, convert_to, models_here, require_frameworks
from tests.support.running import children_of, finish, is_running, start, wait_until

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError("hidden: " + name)
sys.meta_path.insert(0, Hidden())
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run the command and its models in this process; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def parity(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["parity", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    with models_here():
        yield parity


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of tiny-moat0 with position embedding."""
    return write_tiny(tmp_path_factory.mktemp("cli") / "model.ckpt")


class TestWithFrameworks:
    @pytest.fixture(autouse=True)
    def _frameworks(self) -> None:
        require_frameworks()

    def test_agreement_returns_0_and_says_it_in_words(self, run: Run, tmp_path: Path):
        junit = tmp_path / "reports" / "parity.xml"
        code, out, err = run("tiny-moat0", "--synthetic", "--resolution", "64x96", "--junit", junit)
        assert code == 0
        lines = out.splitlines()
        assert lines[1] == "tiny-moat0: tiny-moat0 with position embedding"
        assert lines[2] == (
            "  settings  pool_size 2, window_size none, global_attention false, se_activation swish, "
            "layer_norm_epsilon 1e-05, input_order rgb"
        )
        assert "2 random inputs at 64x96, seed 20260101" in lines[3]
        assert "reads the original (tf, layout deeplab2, float32); tensorflow" in lines[4]
        assert "reads a fresh conversion (safetensors, layout torch, float32); torch" in lines[5]
        table = [line.split() for line in lines[6:13]]
        assert [row[0] for row in table] == ["output", *OUTPUTS]
        assert all(row[-1] == "agrees" for row in table[1:])
        assert lines[13].startswith("same answers: top-1 2/2, top-5 2/2")
        assert any("synthetic weights" in line for line in lines if line.startswith("note:"))
        assert lines[0].startswith("agree: tiny-moat0 (synthetic weights, float32)")
        assert "\x1b" not in out, "no colour in a pipe"
        assert "loading Keras" in err
        assert "loading PyTorch" in err
        assert ElementTree.parse(junit).getroot().get("tests") == "6"
        assert [path.name for path in junit.parent.iterdir()] == ["parity.xml"]

    def test_an_entry_of_the_registry_needs_no_download(self, run: Run):
        code, out, _ = run(
            "tiny-moat0-256-noposemb",
            "--synthetic",
            "--resolution",
            "64",
            "--batch",
            "1",
            "--offline",
            "--json",
        )
        assert code == 0
        (report,) = json.loads(out)
        assert (report["name"], report["pos_emb"]) == ("tiny-moat0-256-noposemb", False)
        assert report["inputs"]["batch"] == 1

    def test_disagreement_returns_1_in_words_json_and_junit(
        self, run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        import torch.nn.functional as F

        from ckptkit.families.moat import torch_model

        monkeypatch.setattr(torch_model, "gelu", partial(F.gelu, approximate="tanh"))
        code, out, _ = run(tiny, "--resolution", "64", "--junit", tmp_path / "p.xml")
        assert code == 1
        assert out.splitlines()[0].startswith(f"DISAGREE from stage1 on: {tiny}")
        root = ElementTree.parse(tmp_path / "p.xml").getroot()
        assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("6", "6", "0")
        code, out, _ = run(tiny, "--resolution", "64", "--json")
        assert code == 1
        (report,) = json.loads(out)
        assert (report["ok"], report["first_departure"]) == (False, "stage1")

    def test_a_damaged_file_returns_5_and_the_others_are_compared_all_the_same(
        self, run: Run, tiny: Path, tmp_path: Path
    ):
        broken = tmp_path / "broken.tar.gz"
        broken.write_text("<!DOCTYPE html><title>404</title>")
        code, out, err = run(broken, tiny, "--resolution", "64", "--json", "--junit", "p.xml")
        assert code == 5
        first, second = json.loads(out)
        assert (first["ok"], first["kind"], second["ok"]) == (False, "FormatError", True)
        assert "broken.tar.gz could not be compared" in err
        root = ElementTree.parse(tmp_path / "p.xml").getroot()
        assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("7", "0", "1")

    def test_a_given_conversion_and_dtype(self, run: Run, tiny: Path, tmp_path: Path):
        converted = convert_to(tiny, tmp_path, "torch", dtype="float16")
        code, out, _ = run(tiny, "--converted", converted, "--resolution", "64")
        assert code == 0
        assert f"reads {converted}" in out
        assert "rounded to float16" in out
        code, _, err = run(tiny, "--converted", converted, "--dtype", "float16")
        assert code == 2
        assert "leave --dtype out" in err

    def test_what_other_code_gave_is_a_side(self, run: Run):
        recorded = GOLDEN_FOLDER / "golden_tiny_moat0_pe_256_pool2.npz"
        code, out, _ = run("tiny-moat0", "--synthetic", "--with", "recorded", "--converted", recorded)
        assert code == 0
        lines = out.splitlines()
        assert lines[1] == "tiny-moat0 with recorded: tiny-moat0 with position embedding"
        assert "PyTorch   reads the original (tf, layout deeplab2, float32); torch" in lines[4]
        assert f"Recorded  reads {recorded} (npz, layout outputs, float32)" in lines[5]
        assert [line.split()[0] for line in lines[7:9]] == ["stage5", "logits"]
        code, _, err = run("tiny-moat0", "--synthetic", "--with", "recorded")
        assert (code, "name it: --converted outputs.npz" in err) == (2, True)

    def test_quiet_leaves_the_result(self, run: Run, tiny: Path):
        code, out, err = run(tiny, "--resolution", "64", "--quiet")
        assert code == 0
        assert err == ""
        assert "agree: " in out

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            ([], 2, "nothing to compare"),
            (["tiny-moat0", "--synthetic", "--resolution", "big"], 2, "write it like 224"),
            (["tiny-moat0", "--synthetic", "--resolution", "16"], 2, "from 32 to 4096"),
            (["tiny-moat0", "--synthetic", "--batch", "0"], 2, "use 1 or more"),
            (["tiny-moat0", "--synthetic", "--seed", "-1"], 2, "a number from 0"),
            (["tiny-moat0", "--synthetic", "--weights", "ema"], 2, "no moving averages"),
            (["a", "b", "--converted", "c"], 2, "works for a single checkpoint"),
            (["tiny-moat0", "--synthetic", "--converted", "c.pth"], 3, "c.pth: no such file"),
            (["tiny-moat0", "--synthetic", "--dtype", "int8"], 2, "int8"),
            (["tiny-moat0-257", "--synthetic"], 3, "did you mean tiny-moat0-256"),
            (["no/such.ckpt"], 3, "no such file"),
            (["tiny-moat0-256", "--offline"], 4, "--offline"),
            (["--all"], 3, "nothing has been fetched yet"),
            (["moganet-xt-224", "--offline"], 4, "--offline"),
            (["moganet-xt", "--synthetic", "--set", "pool_size=2"], 2, "no setting pool_size"),
            (["moganet-xt", "--synthetic", "--set", "attn_force_fp32=7"], 2, "attn_force_fp32 cannot be '7'"),
            (
                ["moganet-xt", "--synthetic", "--set", "colour=red"],
                2,
                "unknown setting 'colour'; choose ",
            ),
            (["tiny-moat0", "--synthetic", "--image", "no.png"], 3, "no.png"),
        ],
    )
    def test_what_cannot_be_done_returns_its_code_in_one_line(
        self, arguments: list[str], code: int, says: str, run: Run
    ):
        if "--image" in arguments:
            pytest.importorskip("PIL")
        found, out, err = run(*arguments)
        assert found == code, err
        assert says in err
        assert out == ""
        assert "Traceback" not in err

    def test_missing_statistics_return_5(self, run: Run, tmp_path: Path):
        def first_upload(tensors: dict[str, Any]) -> None:
            for name in [name for name in tensors if "/moving_" in name]:
                del tensors[name]

        prefix = write_tiny(tmp_path / "first.ckpt", first_upload)
        code, _, err = run(prefix)
        assert code == 5
        assert "--allow-missing-bn" in err

    def test_an_interrupt_returns_130_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        junit = tmp_path / "reports" / "p.xml"
        process = start(["parity", "tiny-moat0", "--synthetic", "--junit", junit], tmp_path / "home")
        assert process.stderr is not None
        while "loading Keras" not in (line := process.stderr.readline()):
            assert line, "it ended before it loaded Keras"
        assert list(temporary.iterdir()), "the synthetic checkpoint and its conversion"
        models = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
        assert code == 130
        assert err.splitlines()[-1] == "interrupted"
        assert out == ""
        assert not list(temporary.iterdir())
        assert not list(junit.parent.iterdir())
        if models is not None:
            assert len(models) == 2
            wait_until(lambda: not any(map(is_running, models)))

    def test_a_report_that_cannot_be_written_is_found_before_the_work(self, run: Run, tmp_path: Path):
        (tmp_path / "file").write_text("")
        code, out, err = run("tiny-moat0", "--synthetic", "--junit", tmp_path / "file" / "p.xml")
        assert code == 5
        assert out == ""
        assert "loading" not in err


class TestWithoutFrameworks:
    """In a process that cannot import them, whether or not they are installed."""

    @pytest.mark.parametrize(
        ("hidden", "line"),
        [
            (
                ("torch", "tensorflow", "keras"),
                f"needs torch and tensorflow; {pip_install('torch', 'tensorflow')}",
            ),
            (("torch",), f"needs torch; {pip_install('torch')}"),
            (("tensorflow", "keras"), f"needs tensorflow; {pip_install('tensorflow')}"),
        ],
    )
    def test_what_is_missing_returns_6_before_any_work(
        self, hidden: tuple[str, ...], line: str, tmp_path: Path
    ):
        for package in {"torch", "tensorflow"} - set(hidden):
            pytest.importorskip(package)
        junit = tmp_path / "p.xml"
        process = start(
            ["parity", "tiny-moat0", "--synthetic", "--junit", junit],
            tmp_path / "home",
            HIDE.format(names=hidden),
        )
        code, out, err = finish(process)
        assert code == 6
        assert line in err
        assert len(err.splitlines()) == 1
        assert out == ""
        assert not junit.exists()

    def test_a_missing_pillow_returns_6(self, tmp_path: Path):
        require_frameworks()
        process = start(
            ["parity", "tiny-moat0", "--synthetic", "--image", "cat.png"],
            tmp_path / "home",
            HIDE.format(names=("PIL",)),
        )
        code, _, err = finish(process)
        assert code == 6
        assert pip_install("pillow") in err
