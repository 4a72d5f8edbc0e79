"""registry validate, schema, pin and add, as a user runs them, and what the other commands make of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import save_file

import ckptkit
from ckptkit.cli import completion
from ckptkit.models.synth import Synthetic, write_checkpoint
from ckptkit.registry import edit, loading
from ckptkit.registry.edit import Pin
from ckptkit.registry.loading import load_registry
from ckptkit.store.lockfile import LockEntry, LockFile
from tests.support.commands import SHA, WHEN, Runner, cache, runner
from tests.support.http_server import FaultServer, Served
from tests.support.registries import SMALL, pin_many, write

URL = "https://example.org/my.pth"
SAID = ("--variant", "moganet-xt", "--layout", "torch", "--format", "torch")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def test_validate_finds_no_fault_in_the_registry(run: Runner) -> None:
    result = run("registry", "validate")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("registry.yaml: 93 entries, no fault\n")
    assert result.out.count("\n") == 1


def test_validate_lists_all_faults_of_all_files(run: Runner, tmp_path: Path) -> None:
    good = write(tmp_path, SMALL, "good.yaml")
    bad = write(tmp_path, SMALL.replace("variant:", "varient:"), "bad.yaml")
    worse = write(tmp_path, "entries: [", "worse.yaml")
    result = run("registry", "validate", good, bad, worse)
    assert (result.code, result.err) == (1, "")
    lines = result.out.splitlines()
    assert lines[0] == f"{good}: 2 entries, no fault"
    assert lines[1] == f"{bad}: line 9: entry 'one': variant is missing"
    assert lines[2] == f"{bad}: line 11: entry 'one': unknown key 'varient' (did you mean 'variant'?)"
    assert lines[5] == f"{bad}: 4 faults"
    assert lines[6].startswith(f"{worse}: line 2: not YAML: ")
    assert lines[7] == f"{worse}: 1 fault"
    data = json.loads(run("registry", "validate", good, bad, "--json").out)
    assert [(check["file"], check["entries"], len(check["faults"])) for check in data] == [
        (str(good), 2, 0),
        (str(bad), None, 4),
    ]


def test_validate_without_a_file_checks_those_in_use(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTKIT_REGISTRY", str(write(tmp_path, SMALL)))
    built_in, mine = run("registry", "validate").out.splitlines()
    assert built_in.endswith("registry.yaml: 93 entries, no fault")
    assert mine == f"{tmp_path / 'mine.yaml'}: 2 entries, no fault"
    flag = write(tmp_path, "entries: [{id: one, colour: red}]", "flag.yaml")
    result = run("registry", "validate", "--registry", flag)
    assert result.code == 1
    assert result.out.startswith(f"{flag}: line 1: entry 'one': unknown key 'colour'")


def test_schema_is_json(run: Runner) -> None:
    schema = json.loads(run("registry", "schema").out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "sha256" in schema["$defs"]["Entry"]["properties"]


def test_pin_writes_what_was_observed(run: Runner, tmp_path: Path) -> None:
    record = cache("moat0-224")
    overlay = tmp_path / "mine.yaml"
    trial = run("registry", "pin", "moat0-224", "--file", overlay, "--dry-run")
    assert trial.code == 0 and not overlay.exists()
    assert f'+    sha256: "{SHA}"' in trial.out.splitlines()
    result = run("registry", "pin", "moat0-224", "--file", overlay)
    assert result.code == 0
    assert result.out == f"moat0-224  sha256 {SHA}  5 bytes  {WHEN}\n"
    assert yaml.safe_load(overlay.read_text())["entries"] == [
        {
            "id": "moat0-224",
            "sha256": SHA,
            "size": 5,
            "hash_provenance": {"observed_at": WHEN, "url": record.url},
        }
    ]
    again = run("registry", "pin", "moat0-224", "--registry", overlay)
    assert (again.code, again.err) == (0, f"{overlay}: already up to date\n")
    assert (
        "would stay as it is" in run("registry", "pin", "moat0-224", "--registry", overlay, "--dry-run").err
    )
    shown = run("show", "moat0-224", "--registry", overlay).out
    assert f"sha256              {SHA}\n" in shown
    assert f"observed {WHEN} from {record.url}" in shown


def test_pin_of_another_checksum_needs_force(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224")
    overlay = tmp_path / "mine.yaml"
    run("registry", "pin", "moat0-224", "--file", overlay)
    before = overlay.read_text()
    overlay.write_text(before.replace(SHA, "f" * 64))
    result = run("registry", "pin", "moat0-224", "--registry", overlay)
    assert result.code == 5
    assert f"the fetched file has sha256 {SHA}, but {'f' * 64} is pinned" in result.err
    assert overlay.read_text() == before.replace(SHA, "f" * 64)
    assert run("registry", "pin", "moat0-224", "--registry", overlay, "--force").code == 0
    assert overlay.read_text() == before


def test_pin_refuses_the_upload_without_statistics(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224", bn_statistics=False)
    overlay = tmp_path / "mine.yaml"
    result = run("registry", "pin", "moat0-224", "--file", overlay)
    assert result.code == 2
    assert "without BatchNorm statistics" in result.err
    assert not overlay.exists()
    assert run("registry", "pin", "moat0-224", "--file", overlay, "--force").code == 0


def test_pin_is_all_or_nothing(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224")
    overlay = tmp_path / "mine.yaml"
    result = run("registry", "pin", "moat0-224", "moat1-224", "--file", overlay)
    assert (result.code, result.out) == (3, "")
    assert "moat1-224 has not been fetched here" in result.err
    assert not overlay.exists()


def test_a_glob_pins_what_was_fetched(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224")
    overlay = tmp_path / "mine.yaml"
    result = run("registry", "pin", "moat?-224", "--file", overlay)
    assert result.code == 0 and result.out.startswith("moat0-224  sha256 ")
    assert "moat1-224" not in overlay.read_text()


def test_an_installed_ckptkit_does_not_write_into_itself(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache("moat0-224")
    monkeypatch.setattr(loading, "in_source_tree", lambda: False)
    result = run("registry", "pin", "moat0-224")
    assert (result.code, result.out) == (2, "")
    assert "--file FILE" in result.err


def test_pin_in_a_source_tree_writes_its_registry(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache("moat0-224")
    original = loading.built_in_path().read_text(encoding="utf-8")
    tree = write(tmp_path, original, "registry.yaml")
    (tmp_path / "pyproject.toml").write_text("")
    for module in (loading, edit):
        monkeypatch.setattr(module, "built_in_path", lambda: tree)
    assert run("registry", "pin", "moat0-224").code == 0
    changed = [line for line in tree.read_text().splitlines() if line not in original.splitlines()]
    assert [line.split(":")[0].strip() for line in changed] == ["sha256", "size", "hash_provenance"]


def remember(id: str, sha256: str, *, source: int = 0, **facts: object) -> None:
    """Have the lock file know an entry's file, as a fetch into a cache that is gone would have left it."""
    url = load_registry()[id].sources[source].url
    facts = {"used_url": url, **facts}
    seen = LockEntry(sha256, 7, "2025-05-05T05:05:05+00:00", url, **facts)
    LockFile.default().remember(id, url.rpartition("/")[2], seen)


def pinned(overlay: Path) -> dict[str, dict[str, object]]:
    return {entry.pop("id"): entry for entry in yaml.safe_load(overlay.read_text())["entries"]}


def test_pin_all_writes_what_the_cache_and_the_lock_file_know(run: Runner, tmp_path: Path) -> None:
    cached = cache("moat0-224")
    imported = {"used_url": "file:///home/me/moat1.tar.gz", "how": "import"}
    remember("moat1-224", "a" * 64, server_hashes={"md5": "0" * 32, "crc32c": "0" * 8}, **imported)
    mirrored = {"used_url": "http://127.0.0.1:8765/moat2.tar.gz", "how": "mirror"}
    remember("moat2-384", "b" * 64, **mirrored)
    overlay = tmp_path / "mine.yaml"
    result = run("registry", "pin", "--all", "--file", overlay)
    assert result.code == 0
    assert "3 of 93 entries were fetched" in result.err
    entries = pinned(overlay)
    assert list(entries) == ["moat0-224", "moat1-224", "moat2-384"]
    published = {id: load_registry()[id].sources[0].url for id in entries}
    assert entries["moat0-224"]["hash_provenance"] == {"observed_at": WHEN, "url": cached.url}
    assert entries["moat1-224"] == {
        "sha256": "a" * 64,
        "size": 7,
        "hash_provenance": {
            "observed_at": "2025-05-05T05:05:05+00:00",
            "url": "file:///home/me/moat1.tar.gz",
            "note": f"imported by hand; published at {published['moat1-224']}; "
            "the server's crc32c and md5 held",
        },
    }
    assert entries["moat2-384"]["hash_provenance"] == {
        "observed_at": "2025-05-05T05:05:05+00:00",
        "url": "http://127.0.0.1:8765/moat2.tar.gz",
        "note": f"published at {published['moat2-384']}",
    }
    assert run("registry", "validate", overlay).code == 0
    again = run("registry", "pin", "--all", "--registry", overlay)
    assert again.code == 0 and "already up to date" in again.err


def test_pin_all_keeps_comments_order_and_all_else(run: Runner, tmp_path: Path) -> None:
    overlay = write(tmp_path, SMALL)
    for id, sha256 in [("two", "b" * 64), ("one", "a" * 64)]:
        seen = LockEntry(sha256, 7, WHEN, f"https://a.org/{id}.tar.gz")
        LockFile.default().remember(id, f"{id}.tar.gz", seen)
    result = run("registry", "pin", "--all", "--registry", overlay)
    assert result.code == 0 and [line.split()[0] for line in result.out.splitlines()] == ["one", "two"]
    after = overlay.read_text().splitlines()
    new = [line for line in after if line not in SMALL.splitlines()]
    assert [line for line in after if line not in new] == SMALL.splitlines()
    assert [line.split(":")[0].strip() for line in new] == ["sha256", "size", "hash_provenance"] * 2


def test_pin_all_passes_over_the_lesser_upload(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224", bn_statistics=False)
    cache("moat1-224")
    overlay = tmp_path / "mine.yaml"
    result = run("registry", "pin", "--all", "--file", overlay)
    assert result.code == 0 and list(pinned(overlay)) == ["moat1-224"]
    assert "moat0-224: skipped, only the upload without BatchNorm statistics" in result.err
    assert run("registry", "pin", "--all", "--file", overlay, "--force").code == 0
    assert list(pinned(overlay)) == ["moat1-224", "moat0-224"]


def test_of_several_uploads_in_the_lock_file_the_first_source_is_pinned(run: Runner, tmp_path: Path) -> None:
    sources = load_registry()["moat0-224"].sources
    better, lesser = (
        next(i for i, s in enumerate(sources) if s.bn_statistics is has) for has in (True, False)
    )
    overlay = tmp_path / "mine.yaml"
    remember("moat0-224", "b" * 64, source=lesser)
    refused = run("registry", "pin", "moat0-224", "--file", overlay)
    assert refused.code == 2 and "without BatchNorm statistics" in refused.err
    remember("moat0-224", "a" * 64, source=better)
    assert run("registry", "pin", "moat0-224", "--file", overlay).code == 0
    assert pinned(overlay)["moat0-224"]["sha256"] == "a" * 64


def test_pin_refuses_where_cache_and_lock_file_differ(run: Runner, tmp_path: Path) -> None:
    cache("moat0-224")
    remember("moat0-224", "a" * 64)
    overlay = tmp_path / "mine.yaml"
    for which in ("moat0-224", "--all"):
        result = run("registry", "pin", which, "--file", overlay)
        assert (result.code, result.out) == (5, "") and not overlay.exists()
        assert (
            f"the cached file has sha256 {SHA}, but the lock file " in result.err and "a" * 64 in result.err
        )
    assert run("registry", "pin", "moat0-224", "--file", overlay, "--force").code == 0
    assert pinned(overlay)["moat0-224"]["sha256"] == SHA


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "give ids or globs, or --all"),
        (["moat0-224", "--all"], 2, "not both"),
        (["--all"], 3, "nothing to pin has been fetched here"),
    ],
)
def test_what_to_pin_must_be_said(
    run: Runner, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    result = run("registry", "pin", *arguments, "--file", tmp_path / "mine.yaml")
    assert (result.code, result.out) == (code, "") and said in result.err
    assert not (tmp_path / "mine.yaml").exists()


# -- add


@pytest.fixture(scope="module")
def moat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-moat0 without position embedding, as published."""
    file = tmp_path_factory.mktemp("moat") / "tiny.tar.gz"
    return write_checkpoint(Synthetic("tiny-moat0", pos_emb=False), file)


@pytest.fixture(scope="module")
def moganet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """moganet-xt with moving averages and raw weights, as published."""
    file = tmp_path_factory.mktemp("moganet") / "xt.pth"
    return write_checkpoint(Synthetic("moganet-xt", layout="torch", twins=True), file)


def entry_in(path: Path, id: str) -> dict[str, Any]:
    (found,) = (e for e in yaml.safe_load(path.read_text(encoding="utf-8"))["entries"] if e["id"] == id)
    return found


def test_a_file_tells_what_is_not_said(run: Runner, tmp_path: Path, moat: Path) -> None:
    mine = write(tmp_path, "# mine\nentries:\n  - id: moat0-224\n    note: ours  # why\n")
    trial = run("registry", "add", "my-moat", URL, "--file", mine, "--checkpoint", moat, "--dry-run")
    assert trial.code == 0 and "+  - id: my-moat" in trial.out.splitlines()
    assert entry_in(mine, "moat0-224") and "my-moat" not in mine.read_text()
    done = run("registry", "add", "my-moat", URL, "--file", mine, "--checkpoint", moat)
    assert (done.code, done.out) == (0, "my-moat  moat  tiny-moat0  tf  deeplab2\n")
    assert done.err == f"{mine}: written; use it with --registry {mine}\n"
    assert entry_in(mine, "my-moat") == {
        "id": "my-moat",
        "family": "moat",
        "variant": "tiny-moat0",
        "display_name": "my-moat",
        "pos_emb": False,
        "layout": "deeplab2",
        "format": "tf",
        "sources": [{"url": URL}],
    }
    assert mine.read_text().startswith(
        "# mine\nentries:\n  - id: moat0-224\n    note: ours  # why\n\n  - id: "
    )
    (listed,) = json.loads(run("list", "my-*", "--registry", mine, "--format", "json").out)
    assert (listed["id"], listed["variant"], listed["params"]) == ("my-moat", "tiny-moat0", None)


def test_a_file_is_recognised_without_a_framework(tmp_path: Path, moat: Path) -> None:
    words = ["registry", "add", "x", URL, "--file", "m.yaml", "--checkpoint", str(moat)]
    code = (
        "import sys\n"
        f"sys.argv = ['ckptkit', *{words!r}]\n"
        "from ckptkit.cli.app import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'tensorflow', 'keras', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "x  moat  tiny-moat0  tf  deeplab2\n[]\n"), done.stderr


def test_everything_can_be_said(run: Runner, tmp_path: Path) -> None:
    mine = tmp_path / "new" / "mine.yaml"
    options = {
        "--display-name": "Mine",
        "--resolution": "160",
        "--test-resolution": "224",
        "--params": "2.97M",
        "--flops": "0.80G",
        "--top1": "76.5",
        "--top5": "93.4",
        "--license": "MIT",
        "--normalization": "imagenet",
        "--weights": "ema",
        "--note": "trained: here",
        "--set": "attn_force_fp32=false",
    }
    words = [word for pair in options.items() for word in pair]
    done = run("registry", "add", "mine", URL, "https://b.org/x", *SAID, *words, "--registry", mine)
    assert (done.code, done.err) == (0, f"{mine}: written\n")
    assert entry_in(mine, "mine") == {
        "id": "mine",
        "family": "moganet",
        "variant": "moganet-xt",
        "display_name": "Mine",
        "train_resolution": 160,
        "test_resolution": 224,
        "published_params": "2.97M",
        "published_flops": "0.80G",
        "published_top1": 76.5,
        "published_top5": 93.4,
        "license": "MIT",
        "layout": "torch",
        "format": "torch",
        "weights": "ema",
        "attn_force_fp32": False,
        "normalization": "imagenet",
        "sources": [{"url": URL}, {"url": "https://b.org/x"}],
        "note": "trained: here",
    }
    assert run("registry", "validate", mine).out == f"{mine}: 1 entry, no fault\n"


def test_what_no_tensor_tells_is_said_to_be_open(run: Runner, tmp_path: Path, moganet: Path) -> None:
    mine = tmp_path / "mine.yaml"
    done = run("registry", "add", "xt", URL, "--file", mine, "--checkpoint", moganet, "--resolution", "192")
    assert done.code == 0
    assert f"{moganet} holds two copies of the weights" in done.err and "--weights ema or raw" in done.err
    assert "xt: attn_force_fp32 is not given" in done.err
    entry = entry_in(mine, "xt")
    assert (entry["layout"], entry["format"]) == ("torch", "torch")
    assert (entry["train_resolution"], entry["test_resolution"]) == (192, 192)
    assert not {"weights", "attn_force_fp32", "pos_emb", "sha256"} & set(entry)
    told = ("--set", "attn_force_fp32=true", "--weights", "raw")
    done = run("registry", "add", "xt", URL, "--file", mine, "--checkpoint", moganet, *told, "--force")
    assert done.code == 0 and "two copies" not in done.err and "is not given" not in done.err
    assert entry_in(mine, "xt") == {**entry, "weights": "raw", "attn_force_fp32": True}


def test_settings_travel_in_converted_files(run: Runner, tmp_path: Path, moganet: Path) -> None:
    converted, mine = tmp_path / "xt.safetensors", tmp_path / "mine.yaml"
    told = ("--set", "attn_force_fp32=true")
    assert run("convert", moganet, "--to", "safetensors", "-o", converted, *told).code == 0
    done = run("registry", "add", "xt", URL, "--file", mine, "--checkpoint", converted)
    assert (done.code, done.out) == (0, "xt  moganet  moganet-xt  safetensors  torch\n")
    assert entry_in(mine, "xt")["attn_force_fp32"] is True


def test_a_keras_file_has_the_layout_keras(run: Runner, tmp_path: Path, moat: Path) -> None:
    converted, mine = tmp_path / "tiny.weights.h5", tmp_path / "mine.yaml"
    assert run("convert", moat, "--to", "keras", "-o", converted).code == 0
    done = run("registry", "add", "k", URL, "--file", mine, "--checkpoint", converted)
    assert (done.code, done.out) == (0, "k  moat  tiny-moat0  keras  keras\n")


def test_a_pin_is_what_was_observed_on_the_file(run: Runner, tmp_path: Path, moat: Path) -> None:
    mine = tmp_path / "mine.yaml"
    done = run("registry", "add", "my-moat", URL, "--file", mine, "--checkpoint", moat, "--pin")
    assert done.code == 0
    entry = entry_in(mine, "my-moat")
    body = moat.read_bytes()
    assert (entry["sha256"], entry["size"]) == (hashlib.sha256(body).hexdigest(), len(body))
    seen = entry["hash_provenance"]
    assert (seen["url"], seen["note"]) == (
        URL,
        "observed on a local file, tiny.tar.gz, which was not fetched from there",
    )
    age = datetime.now(timezone.utc) - datetime.fromisoformat(seen["observed_at"])
    assert timedelta(0) <= age < timedelta(minutes=10)


def test_a_pin_needs_the_file_as_published(run: Runner, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    done = run("registry", "add", "m", URL, *SAID, "--file", mine, "--pin")
    assert (done.code, done.out) == (2, "") and "give it with --checkpoint FILE" in done.err
    prefix = write_checkpoint(Synthetic("tiny-moat0", twins=True), tmp_path / "model.ckpt")
    done = run("registry", "add", "m", URL, "--file", mine, "--checkpoint", prefix, "--pin")
    assert (done.code, done.out) == (2, "")
    assert f"{prefix} is not one file, and only the file as published has a checksum" in done.err
    assert not mine.exists()
    done = run("registry", "add", "m", URL, "--file", mine, "--checkpoint", prefix)
    assert done.code == 0 and f"{prefix} holds two copies of the weights" in done.err


@pytest.mark.parametrize("pinned", [False, True])
def test_fetch_takes_the_entry(run: Runner, tmp_path: Path, moganet: Path, pinned: bool) -> None:
    mine = tmp_path / "mine.yaml"
    pin = ("--pin",) if pinned else ()
    with FaultServer(files={"/xt.pth": Served(moganet.read_bytes())}) as server:
        url = f"{server.base}/xt.pth"
        assert run("registry", "add", "xt", url, "--file", mine, "--checkpoint", moganet, *pin).code == 0
        done = run("fetch", "xt", "--registry", mine)
        assert done.code == 0, done.err
        assert Path(done.out.strip()).read_bytes() == moganet.read_bytes()
        assert ("sha256 as the registry says" in done.err) == pinned
        server.files["/xt.pth"] = Served(b"other bytes", etag='"v2"')
        assert run("cache", "rm", "xt", "--registry", mine).code == 0
        again = run("fetch", "xt", "--registry", mine)
        assert (again.code, again.out) == (5, ""), again.err


def test_fetch_takes_an_entry_of_a_file_url(run: Runner, tmp_path: Path, moat: Path) -> None:
    mine = tmp_path / "mine.yaml"
    added = run("registry", "add", "mine", moat.as_uri(), "--file", mine, "--checkpoint", moat, "--pin")
    assert added.code == 0
    done = run("fetch", "mine", "--registry", mine)
    assert done.code == 0, done.err
    assert run("verify", "mine", "--registry", mine).code == 0


def test_an_id_that_is_there_needs_force_and_one_below_is_overridden(run: Runner, tmp_path: Path) -> None:
    mine = write(tmp_path, SMALL)
    done = run("registry", "add", "one", URL, "--file", mine)
    assert (done.code, done.out) == (2, "")
    assert f"{mine} has an entry 'one' already; give --force to update its fields" in done.err
    assert mine.read_text() == SMALL
    assert run("registry", "add", "one", URL, "--file", mine, "--force", "--top1", "84").code == 0
    assert entry_in(mine, "one")["published_top1"] == 84.0
    again = run("registry", "add", "one", URL, "--file", mine, "--force", "--top1", "84")
    assert again.err == f"{mine}: already up to date\n"
    trial = run("registry", "add", "one", URL, "--file", mine, "--force", "--dry-run")
    assert (trial.out, trial.err) == ("", f"{mine}: would stay as it is\n")
    done = run("registry", "add", "moat0-224", URL, "--file", mine)
    assert done.code == 0
    overridden = f"overrides the entry of {loading.built_in_path()}; other fields keep their values"
    assert f"moat0-224: {overridden}" in done.err
    assert entry_in(mine, "moat0-224") == {"id": "moat0-224", "sources": [{"url": URL}]}


def test_a_checksum_that_stays_is_told(run: Runner, tmp_path: Path, moganet: Path) -> None:
    mine = tmp_path / "mine.yaml"
    first = ("registry", "add", "xt", URL, "--file", mine, "--checkpoint", moganet)
    assert run(*first, "--pin").code == 0
    before = entry_in(mine, "xt")["sha256"]
    done = run("registry", "add", "xt", "https://b.org/x", "--file", mine, "--force")
    assert done.code == 0 and "xt: the checksum pinned before still holds" in done.err
    assert entry_in(mine, "xt")["sha256"] == before
    assert "pinned before" not in run(*first, "--pin", "--force").err


def test_the_registry_below_keeps_its_checksum_without_force(run: Runner, tmp_path: Path, moat: Path) -> None:
    below, mine = write(tmp_path, SMALL, "below.yaml"), tmp_path / "mine.yaml"
    pin_many(below, [Pin("one", SHA, 5, WHEN, URL)])
    words = ("--registry", below, "--registry", mine, "--checkpoint", moat, "--pin")
    done = run("registry", "add", "one", URL, *words)
    assert (done.code, done.out) == (5, "")
    assert f"but {SHA} is pinned; --force replaces the pinned one" in done.err
    assert not mine.exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["xt", URL], 2, "xt: cannot be added: family is missing; variant is missing; layout is missing"),
        (["xt", URL, *SAID, "--variant", "moat9"], 3, "unknown variant 'moat9'"),
        (
            ["xt", URL, *SAID, "--family", "moat"],
            3,
            "xt: variant: 'moganet-xt' is a variant of family 'moganet', not of 'moat'",
        ),
        (
            ["xt", URL, *SAID, "--family", "net"],
            3,
            "xt: family: unknown family 'net' (did you mean 'moganet'?)",
        ),
        (
            ["xt", URL, "--variant", "moat0", "--layout", "openmixup", "--format", "torch"],
            2,
            "xt: layout: 'openmixup' is a layout of family 'moganet', not of 'moat'",
        ),
        (
            ["xt", URL, "--variant", "moat0", "--layout", "deeplab2", "--format", "torch"],
            2,
            "xt: format: 'torch' does not support layout 'deeplab2' (one of tf, safetensors, npz)",
        ),
        (["xt", URL, *SAID, "--layout", "nchw"], 2, "layout: input should be 'deeplab2', 'openmixup'"),
        (["xt", URL, *SAID, "--weights", "both"], 2, "weights: input should be 'ema' or 'raw'"),
        (["xt", "my.pth", *SAID], 2, "sources[0].url: a URL begins with one of https://"),
        (["xt", URL, *SAID, "--params", "3 M"], 2, "published_params: string should match pattern"),
        (["xt", URL, *SAID, "--top1", "-1"], 2, "published_top1: input should be greater than or equal to 0"),
        (["xt", URL, *SAID, "--resolution", "0"], 2, "train_resolution: input should be greater than"),
        (["xt", URL, *SAID, "--set", "pool_size=2"], 2, "family moganet has no setting pool_size"),
        (["xt", URL, *SAID, "--set", "colour=2"], 2, "unknown setting 'colour'; choose from "),
        (["xt", URL, "--checkpoint", "missing.pth"], 3, "missing.pth: no such file"),
    ],
)
def test_faults_are_told_in_a_line_and_nothing_is_written(
    run: Runner, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    mine = tmp_path / "mine.yaml"
    done = run("registry", "add", *words, "--file", mine)
    assert (done.code, done.out) == (code, "") and said in done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert not mine.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variant", "tiny-moat1"], "are unlike tiny-moat1"),
        (["--layout", "torch"], "its layout is deeplab2, not torch"),
        (["--format", "torch"], "its format is tf, not torch"),
        (["--family", "moganet"], "its family is moat, not moganet"),
        (["--pos-emb"], "its pos_emb is false, not true"),
    ],
)
def test_a_file_is_not_contradicted(
    run: Runner, tmp_path: Path, moat: Path, words: list[str], said: str
) -> None:
    mine = tmp_path / "mine.yaml"
    done = run("registry", "add", "x", URL, "--file", mine, "--checkpoint", moat, *words)
    assert (done.code, done.out) == (5 if "unlike" in said else 2, "") and said in done.err
    assert not mine.exists()


def test_the_built_in_registry_is_written_only_in_a_source_tree_and_by_name(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = write(tmp_path, SMALL, "registry.yaml")
    monkeypatch.setattr(loading, "built_in_path", lambda: tree)
    for in_tree in (True, False):
        monkeypatch.setattr(loading, "in_source_tree", lambda in_tree=in_tree: in_tree)
        done = run("registry", "add", "xt", URL, *SAID)
        assert (done.code, done.out) == (2, "") and "--file FILE" in done.err
    done = run("registry", "add", "xt", URL, *SAID, "--file", tree)
    assert (done.code, done.out) == (2, "") and "cannot be edited" in done.err
    assert tree.read_text() == SMALL
    monkeypatch.setattr(loading, "in_source_tree", lambda: True)
    assert run("registry", "add", "xt", URL, *SAID, "--file", tree).code == 0
    assert tree.read_text().startswith(SMALL) and entry_in(tree, "xt")["variant"] == "moganet-xt"


@pytest.mark.parametrize(
    ("field", "begun", "offered"),
    [
        ("layout", "", ["deeplab2", "openmixup", "torch", "keras", "wd-tagger", "kecam", "birder"]),
        ("format", "t", ["tf", "torch", "tf1"]),
        ("weights", "", ["ema", "raw"]),
        ("normalization", "x", []),
    ],
)
def test_values_are_completed(field: str, begun: str, offered: list[str]) -> None:
    assert completion.complete_values(field)(begun) == offered


def test_a_registry_at_a_url_is_not_edited(run: Runner, tmp_path: Path) -> None:
    text = "entries: []\n"
    (tmp_path / "theirs.yaml").write_text(text)
    url = f"{(tmp_path / 'theirs.yaml').as_uri()}#sha256={hashlib.sha256(text.encode()).hexdigest()}"
    result = run("registry", "add", "mine", URL, *SAID, "--registry", url)
    assert result.code == 2 and "a registry at a URL cannot be edited" in result.err
    assert run("list", "moat0-224", "--registry", url).code == 0
    assert (tmp_path / "theirs.yaml").read_text() == text


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["--task", "object-detection", "--method", "RetinaNet", "--serves", "backbone", "--classes", "80"],
         {"task": "object-detection", "method": "RetinaNet", "serves": "backbone", "num_classes": 80}),
        (["--metric", "box_mAP=39.7", "--metric", "AP50=60", "--dataset", "COCO 2017 val", "--setting", "1x"],
         {"metrics": {"box_mAP": 39.7, "AP50": 60.0}, "dataset": "COCO 2017 val", "setting": "1x"}),
        (["--md5", "0e" * 16, "--checksum-page", "https://a.org/page"],
         {"md5": "0e" * 16, "checksum_page": "https://a.org/page", "sha256": None}),
        (["--sha256", "01" * 32, "--checksum-page", "https://a.org/page"],
         {"sha256": "01" * 32, "checksum_page": "https://a.org/page", "hash_provenance": None}),
    ],
)  # fmt: skip
def test_add_takes_every_field_of_a_row(
    run: Runner, tmp_path: Path, options: list[str], fields: dict[str, object]
) -> None:
    mine = tmp_path / "mine.yaml"
    what = ("--variant", "moganet-xt", "--layout", "openmixup", "--format", "torch")
    for revision in ("a" * 40, "b" * 40):  # the second time it is updated
        url = "hf://org/name/m.pth"
        added = run(
            "registry", "add", "mine", url, *what, *options, "--revision", revision, "--file", mine, "--force"
        )
        assert added.code == 0, added.err
        entry = load_registry([mine])["mine"]
        assert {name: entry.model_dump()[name] for name in fields} == fields
        assert [source.url for source in entry.sources] == [f"hf://org/name@{revision}/m.pth"]


@pytest.mark.parametrize("url", ["hf://org/name/m.pth", "https://huggingface.co/org/name/resolve/main/m.pth"])
def test_a_branch_is_written_as_the_commit_that_it_is(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    commit, mine = "0123456789" * 4, tmp_path / "mine.yaml"
    with FaultServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.base)
        for revision in ("main", "refs%2Fpr%2F1"):
            server.serve(
                f"/api/models/org/name/revision/{revision}",
                b'{"sha": "%s", "siblings": []}' % commit.encode(),
            )
        what = (
            "--variant",
            "moganet-xt",
            "--layout",
            "openmixup",
            "--format",
            "torch",
            "--file",
            mine,
            "--force",
        )
        for revision in ("main", "refs/pr/1"):
            added = run("registry", "add", "mine", url, *what, "--revision", revision)
            assert added.code == 0, added.err
            assert f"{revision} is {commit}" in added.err
            (source,) = load_registry([mine])["mine"].sources
            assert source.url in (
                f"hf://org/name@{commit}/m.pth",
                f"https://huggingface.co/org/name/resolve/{commit}/m.pth",
            )
        offline = run("--offline", "registry", "add", "mine", url, *what, "--revision", "main")
        assert (offline.code, "give the whole commit" in offline.err) == (4, True)
        unknown = run("registry", "add", "mine", url, *what, "--revision", "nosuch")
        assert (unknown.code, "404" in unknown.err) == (4, True)


# -- several files


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, moganet: Path) -> Path:
    """moganet-xt as shards with their index."""
    folder = tmp_path_factory.mktemp("shards")
    arrays = ckptkit.load(moganet, layout="torch")
    where = {name: f"xt-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(arrays)}
    for shard in set(where.values()):
        save_file({name: arrays[name] for name in where if where[name] == shard}, folder / shard)
    index = folder / "xt.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("at_once", [True, False], ids=["add --pin", "fetch and pin"])
def test_an_entry_in_several_files_is_added_fetched_and_pinned(
    run: Runner, tmp_path: Path, shards: Path, at_once: bool
) -> None:
    mine = tmp_path / "mine.yaml"
    names = sorted(path.name for path in shards.parent.glob("*.safetensors"))
    assert len(names) > 1
    companions = [word for name in names for word in ("--companion", name)]
    options = ["--checkpoint", shards, *["--pin"] * at_once]
    added = run("registry", "add", "my-xt", shards.as_uri(), "--file", mine, *companions, *options)
    assert added.code == 0, added.err
    assert run("registry", "validate", mine).code == 0
    if not at_once:
        assert entry_in(mine, "my-xt")["companions"] == [{"path": name} for name in names]
        mine.write_text(mine.read_text() + "\n  # the end\n")
        assert run("fetch", "my-xt", "--registry", mine).code == 0
        assert run("registry", "pin", "--all", "--registry", mine).code == 0
        assert mine.read_text().endswith("\n  # the end\n")
    found = entry_in(mine, "my-xt")
    assert found["sha256"] == sha256_of(shards) and found["hash_provenance"]
    assert found["companions"] == [
        {
            "path": name,
            "sha256": sha256_of(shards.parent / name),
            "size": (shards.parent / name).stat().st_size,
        }
        for name in names
    ]
    fetched = run("fetch", "my-xt", "--registry", mine, "--require-checksum")
    assert fetched.code == 0, fetched.err
    assert Path(fetched.out.strip()).name == shards.name
    again = run("registry", "pin", "my-xt", "--registry", mine)
    assert again.code == 0 and (at_once or "already up to date" in again.err)


def test_a_lock_file_pins_each_of_several_files(run: Runner, tmp_path: Path) -> None:
    row = {
        "id": "many",
        "serves": "container",
        "sources": [{"url": "https://a.org/i.json"}],
        "companions": [{"path": "s"}],
    }
    row |= {
        "family": "other",
        "variant": "x",
        "display_name": "x",
        "layout": "torch",
        "format": "safetensors",
    }
    mine = write(tmp_path, json.dumps({"entries": [row]}))
    LockFile.default().remember("many", "s", LockEntry("b" * 64, 7, WHEN, "https://a.org/s"))
    lacking = run("registry", "pin", "many", "--registry", mine)
    assert lacking.code == 3 and "has not been fetched here" in lacking.err
    LockFile.default().remember("many", "i.json", LockEntry("a" * 64, 3, WHEN, "https://a.org/i.json"))
    assert run("registry", "pin", "many", "--registry", mine).code == 0
    found = entry_in(mine, "many")
    assert (found["sha256"], found["companions"]) == (
        "a" * 64,
        [{"path": "s", "sha256": "b" * 64, "size": 7}],
    )
