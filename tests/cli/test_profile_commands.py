"""``ckptkit profile`` as users and CI jobs call it: words, JSON, exit codes."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptkit.registry.loading import load_registry
from ckptkit.registry.query import Registry
from ckptkit.workspace import Workspace
from tests.support.commands import BELOW_0, Runner, pip_install, runner
from tests.support.registries import write
from tests.support.running import finish, start

WITHOUT_TORCH = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("hidden: " + name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    pytest.importorskip("torch")
    return runner(capsys)


@pytest.fixture(scope="module", autouse=True)
def _each_model_is_counted_once() -> Iterator[None]:
    from ckptkit.analysis import profile

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "profile", functools.cache(profile.profile))
        yield


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of three entries, so that --all is quick."""
    whole = load_registry()
    small = Registry([whole[id] for id in ("tiny-moat2-256", "moganet-xt-224", "moganet-xt-256")])
    monkeypatch.setattr(Workspace, "registry", small)


def test_an_entry_beside_its_published_figures(run: Runner):
    done = run("profile", "moganet-xt-224")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "moganet-xt-224: moganet-xt at 224×224, 1,000 classes"
    assert lines[1].startswith("  parameters     2,956,066, published 2.97M: known: the published parameter")
    assert lines[2] == "  multiply-adds  0.7997G, published 0.80G: exact"
    assert lines[3] == "  products alone 0.7821G"
    assert lines[4].startswith("  counted by     mmcv: products, 1 for each element")
    assert lines[5].split() == ["module", "type", "parameters", "multiply-adds", "share"]
    assert lines[6].split() == ["moganet-xt", "MogaNetModel", "2,956,066", "0.7997G", "100.0%"]
    stages = [f"{part}{n}" for n in (1, 2, 3, 4) for part in ("patch_embed", "blocks", "norm")]
    assert [line.split()[0] for line in lines[7:]] == [*stages, "head"]
    assert all(line.startswith("  ") for line in lines[7:])
    assert sum(int(line.split()[-3].replace(",", "")) for line in lines[7:]) == 2_956_066


def test_another_resolution_has_no_published_flops(run: Runner):
    done = run("profile", "tiny-moat0-256", "--resolution", "64x96", "--depth", "0", "--check")
    assert done.code == 0
    assert "tiny-moat0 at 64×96, with position embedding, 1,000 classes" in done.out
    assert "published 3.4M: exact" in done.out
    assert "not compared: published at 256×256" in done.out
    assert len(done.out.splitlines()) == 7  # the head of the table and the model itself


def test_a_variant_is_compared_with_the_entry_that_fits(run: Runner):
    done = run("profile", "tiny-moat0", "--no-pos-emb", "--depth", "2")
    assert "published 3.3M of tiny-moat0-256-noposemb: exact" in done.out
    assert "published 1.1B of tiny-moat0-256-noposemb: exact" in done.out
    assert "    stages.2.0 " in done.out
    without = run("profile", "tiny-moat0", "--no-head", "--set", "window_size=4")
    assert "with position embedding, no head" in without.out
    assert without.out.count("not compared") == 2


def test_json_has_everything(run: Runner):
    done = run("profile", "moganet-xt", "--resolution", "256", "--json", "--depth", "2")
    values = json.loads(done.out)
    assert (values["name"], values["entry"], values["ok"]) == ("moganet-xt", "moganet-xt-256", True)
    assert values["parameters"] == 2_956_066
    assert f"{values['multiply_adds'] / 1e9:.4f}" == "1.0444"
    assert [check["verdict"] for check in values["checks"]] == ["known", "exact"]
    (blocks,) = [module for module in values["modules"]["modules"] if module["name"] == "blocks1"]
    assert [module["name"] for module in blocks["modules"]] == ["blocks1.0", "blocks1.1", "blocks1.2"]


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ("published_flops: 0.80G", 0, "published 0.80G: exact"),
        ("published_flops: 0.9G", 1, "published 0.9G: off: -11.1% off, and no known deviation"),
        ("exact_parameters: 2956067", 1, "published 2.97M: off: the published code has 2,956,067"),
        (
            "published_params: 2.96M, known_deviations: "
            "[{figure: params, published: 2.96M, reason: no longer true}]",
            1,
            "published 2.96M: stale: the registry lists a deviation",
        ),
        (
            "published_flops: 0.9G, known_deviations: [{figure: flops, published: 0.9G, reason: a slip},"
            " {figure: params, published: 2.97M, reason: another}]",
            0,
            "published 0.9G: known: a slip",
        ),
    ],
)
def test_check_returns_1_when_a_figure_does_not_hold(
    run: Runner, tmp_path: Path, fields: str, code: int, says: str
):
    overlay = write(tmp_path, f"entries: [{{id: moganet-xt-224, {fields}}}]")
    done = run("profile", "moganet-xt-224", "--check", "--registry", overlay)
    assert done.code == code
    assert says in done.out
    assert run("profile", "moganet-xt-224", "--registry", overlay).code == 0, "without --check it only tells"


def test_all_tells_every_entry_and_each_known_deviation_once(run: Runner, few: None):
    done = run("profile", "--all", "--check")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[2].split() == [
        *("tiny-moat2-256", "256×256", "9,772,741", "9.8M", "exact", "3.0618G", "3.0B", "known")
    ]
    assert lines[4].split()[-3:] == ["1.0444G", "1.04G", "exact"]
    known = [line for line in lines if line.startswith("known: ")]
    assert len(known) == 2
    assert known[1].startswith("known: parameters 2.97M: the published parameter count does not round")
    assert known[1].endswith("(moganet-xt-224, moganet-xt-256)")
    assert lines[0] == "3 entries, 3 known deviations; all published figures reproduced"
    assert "\x1b" not in done.out


def test_all_as_json(run: Runner, few: None):
    values = json.loads(run("profile", "--all", "--json").out)
    assert [(value["id"], value["ok"]) for value in values] == [
        ("tiny-moat2-256", True),
        ("moganet-xt-224", True),
        ("moganet-xt-256", True),
    ]
    assert values[0]["checks"][1]["reason"].startswith("counted as 3.062B")


@pytest.mark.slow
def test_all_of_the_registry_holds_but_not_with_a_wrong_figure(run: Runner, tmp_path: Path):
    done = run("profile", "--all", "--check")
    assert done.code == 0
    assert done.out.splitlines()[0] == "93 entries, 30 known deviations; all published figures reproduced"
    overlay = write(tmp_path, "entries: [{id: moat4-512, published_flops: 600.0B}]")
    done = run("profile", "--all", "--check", "--registry", overlay)
    assert done.code == 1
    assert done.out.splitlines()[0].endswith("failed: moat4-512")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing to count; name ids, or give --all"),
        (["moat0", "--all"], 2, "give names, or --all, not both"),
        (["--all", "--no-head"], 2, "--all counts every entry as it was published"),
        (["moat0", "--resolution", "big"], 2, "invalid size 'big'"),
        (["moat0", "--resolution", "224x99999"], 2, "at most 16384 pixels a side"),
        (["moat0", "--depth", "-1"], 2, BELOW_0),
        (["moganet-xt", "--no-pos-emb"], 2, "family moganet has no position embedding"),
        (["moat0", "--set", "window_size=5"], 2, "14x14 cannot be cut into windows of 5x5"),
        (["moat0", "--set", "attn_force_fp32=true"], 2, "family moat has no setting attn_force_fp32"),
        (["moat9"], 3, "unknown entry or variant 'moat9'"),
    ],
)
def test_what_is_refused(run: Runner, arguments: list[str], code: int, says: str):
    done = run("profile", *arguments)
    assert done.code == code
    assert says in " ".join(done.err.split())
    assert done.out == ""


@pytest.mark.parametrize("arguments", [["moganet-xt"], ["--all"]])
def test_without_torch_it_says_what_to_install(tmp_path: Path, arguments: list[str]):
    code, out, err = finish(start(["profile", *arguments], tmp_path, WITHOUT_TORCH))
    assert code == 6
    assert f"the PyTorch model needs torch; {pip_install('torch')}" in err
    assert out == ""
