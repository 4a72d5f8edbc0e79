"""The cache folder: where things lie, what a record is worth, and that no id leads out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ckptkit.base.errors import NetworkError, StorageError, UsageError
from ckptkit.store.cache import Home, Record, is_safe_file_name, safe_id, write_json
from tests.store.conftest import Store
from tests.support.entries import entry_of, random_bytes
from tests.support.http_server import FaultServer, cut, goog_hash

RECORD = Record("m", "https://a.org/m.pth", "m.pth", 3, "0" * 64, "2026-01-01T00:00:00+00:00")


def put(home: Home, record: Record, body: bytes | None = b"abc") -> Path:
    path = home.artefact_folder(record.id) / record.file
    write_json(path.with_name(f"{path.name}.json"), record.to_json())
    if body is not None:
        path.write_bytes(body)
    return path


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "h"))
    assert Home.default().path == tmp_path / "h"
    monkeypatch.setenv("CKPTKIT_HOME", "~/models")
    assert Home.default().path == Path.home() / "models"
    monkeypatch.setenv("CKPTKIT_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Home.default().path.name == "ckptkit"


def test_asking_creates_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    assert home.record("m") is None and not home.is_cached("m") and home.fetched_ids() == []
    assert not home.path.exists()


@pytest.mark.parametrize("id", ["moat0-224", "a", "A.b_c+d-1", "x" * 128])
def test_ids_that_can_name_a_folder(id: str) -> None:
    assert safe_id(id) == id


@pytest.mark.parametrize(
    "id",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "C:x", "a\0b", ".hidden", "-x", "a.", "a b", "x" * 129,
     "ä", "a\n"],
)  # fmt: skip
def test_ids_that_could_lead_out_are_refused(tmp_path: Path, id: str) -> None:
    home = Home(tmp_path)
    for ask in (
        home.artefact_folder,
        home.unpacked_folder,
        home.converted_folder,
        home.is_cached,
        home.record,
    ):
        with pytest.raises(UsageError, match="cannot be an entry id"):
            ask(id)
    with pytest.raises(UsageError), home.lock(id):
        pass


@pytest.mark.parametrize(
    ("name", "fine"),
    [("m.pth", True), ("a b.tar.gz", True), ("", False), (".x", False), ("a/b", False), ("a\\b", False),
     ("a:b", False), ("a\x01", False), ("a.", False), ("x" * 201, False), ("é" * 101, False), ("..", False)],
)  # fmt: skip
def test_file_names(name: str, fine: bool) -> None:
    assert is_safe_file_name(name) is fine


def test_converted_path(tmp_path: Path) -> None:
    path = Home(tmp_path).converted_path("m", "torch", "float16", "safetensors")
    assert path == tmp_path / "converted" / "m" / "torch-float16.safetensors"
    assert Home(tmp_path).converted_path("m", "deeplab2", "float32", "").name == "deeplab2-float32"
    with pytest.raises(UsageError):
        Home(tmp_path).converted_path("m", "../x", "float16", "safetensors")


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    home = Home(tmp_path)
    record = replace(
        RECORD, etag='"e"', server_hashes={"md5": "00"}, note="imported by hand", bn_statistics=False
    )
    put(home, record)
    assert home.record("m") == record


def test_the_newest_record_counts(tmp_path: Path) -> None:
    home = Home(tmp_path)
    newer = replace(RECORD, file="n.pth", fetched_at="2026-02-01T00:00:00+00:00")
    put(home, newer)
    put(home, RECORD)
    assert home.record("m") == newer and len(home.records("m")) == 2


def test_cached_means_the_file_is_there_with_its_size(tmp_path: Path) -> None:
    home = Home(tmp_path)
    path = put(home, RECORD)
    put(home, replace(RECORD, id="absent"), body=None)
    put(home, replace(RECORD, id="short"), body=b"ab")
    assert [id for id in ("m", "absent", "short", "unknown") if home.is_cached(id)] == ["m"]
    assert home.fetched_ids() == ["m"]
    path.unlink()
    assert home.fetched_ids() == []


SOUND = json.loads(RECORD.to_json())


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "3", '"x"', "{}", "[" * 100_000, "\xff",
        json.dumps({**SOUND, "sha256": "0" * 63}),
        json.dumps({**SOUND, "sha256": None}),
        json.dumps({**SOUND, "size": "3"}),
        json.dumps({**SOUND, "size": -1}),
        json.dumps({**SOUND, "file": "../m.pth"}),
        json.dumps({**SOUND, "file": 3}),
        json.dumps({**SOUND, "id": "other"}),
        json.dumps({**SOUND, "fetched_at": 5}),
        json.dumps({**SOUND, "server_hashes": []}),
        json.dumps({k: v for k, v in SOUND.items() if k != "url"}),
    ],
)  # fmt: skip
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    path = put(home, RECORD)
    path.with_name("m.pth.json").write_text(text, encoding="latin-1")
    assert home.record("m") is None and not home.is_cached("m") and home.fetched_ids() == []


def test_a_record_of_a_later_version_with_more_fields_is_read(tmp_path: Path) -> None:
    home = Home(tmp_path)
    path = put(home, RECORD)
    path.with_name("m.pth.json").write_text(json.dumps({**SOUND, "mood": "good"}))
    assert home.record("m") == RECORD


def test_lock_excludes_and_says_that_it_waits(tmp_path: Path) -> None:
    home, events = Home(tmp_path), []
    entered, may_leave = threading.Event(), threading.Event()

    def hold() -> None:
        with home.lock("m"):
            entered.set()
            may_leave.wait(10)
            events.append("left")

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(10)
    with home.lock("other"):
        events.append("another id is free")

    def waiting() -> None:
        events.append("waiting")
        may_leave.set()

    with home.lock("m", waiting=waiting):
        events.append("entered")
    holder.join()
    assert events == ["another id is free", "waiting", "left", "entered"]


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("")
    with pytest.raises(StorageError), Home(tmp_path / "h").lock("m"):
        pass


def test_asking_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ckptkit.store.cache import Home; Home.default().is_cached('moat0-224');"
        "heavy = ('requests', 'numpy', 'pydantic', 'filelock', 'yaml', 'rich');"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_fetch_is_a_use(tmp_path: Path, store: Store, server: FaultServer) -> None:
    entry = entry_of(server.serve("/m.pth", b"x" * 1000))
    store.fetch(entry)
    stamp = store.home.path / "used" / entry.id
    assert stamp.stat().st_size == 0
    os.utime(stamp, (1, 1))
    store.home.record(entry.id)
    assert stamp.stat().st_mtime == 1  # asking is none
    store.fetch(entry)
    assert stamp.stat().st_mtime == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("length", [140, 141, 200])
def test_long_names_leave_room_for_temporary_ones(store: Store, server: FaultServer, length: int) -> None:
    name = "m" * (length - 4) + ".pth"
    body = random_bytes(100_000)
    entry = entry_of(server.serve(f"/{name}", body, headers=goog_hash(body)))
    server.fail(f"/{name}", cut(30_000), *[cut(0)] * 3)
    with pytest.raises(NetworkError):
        store.fetch(entry)
    assert store.fetch(entry).path.read_bytes() == body
    assert server.ranges(f"/{name}") == [None, 30_000, 30_000, 30_000, 30_000]
    assert store.leftovers() == []
