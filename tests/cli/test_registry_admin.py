"""registry validate, schema and pin, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ckptkit.registry import edit, load_registry, loading
from ckptkit.store.lockfile import LockEntry, LockFile
from tests.support.commands import SHA, WHEN, Runner, cache, runner
from tests.support.registries import SMALL, write


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def test_validate_finds_no_fault_in_the_registry(run: Runner) -> None:
    result = run("registry", "validate")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("registry.yaml: 42 entries, no fault\n")
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
    assert built_in.endswith("registry.yaml: 42 entries, no fault")
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
    result = run("registry", "pin", "moat?-224", "--file", overlay)
    assert (result.code, result.out) == (3, "")
    assert "moat1-224 has not been fetched here" in result.err
    assert not overlay.exists()


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
    assert "3 of 42 entries were fetched" in result.err
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
