"""A registry at a URL: fetched once, held to its sha256, and never another text in silence."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ckptkit.base.errors import IntegrityError, NetworkError, UsageError
from ckptkit.base.home import home_folders
from ckptkit.registry.loading import cached_registry, environment_files, load_registry
from ckptkit.store.registries import local_registries
from tests.support.http_server import FaultServer

ENTRY = "{id: mine, family: moat, variant: moat0, display_name: Mine, layout: deeplab2, format: tf, "
TEXT = f"entries: [{ENTRY}sources: [{{url: 'https://a.org/x.tar.gz'}}]}}]\n".encode()
PATH = "/x/mine.yaml"


def pinned(url: str, body: bytes = TEXT) -> str:
    return f"{url}#sha256={hashlib.sha256(body).hexdigest()}"


def test_it_is_fetched_once_and_then_loaded(server: FaultServer) -> None:
    url = pinned(server.serve(PATH, TEXT))
    notes: list[str] = []
    (path,) = local_registries([url], notes=notes.append)
    assert path.read_bytes() == TEXT and path.parent.parent == home_folders()[0]
    assert load_registry([path])["mine"].display_name == "Mine"
    server.serve(PATH, b"entries: []\n")  # what is there now does not matter
    assert local_registries([url], offline=True) == (path,)
    assert len(server.requests) == 1 and len(notes) == 1


def test_another_text_is_refused_and_leaves_nothing(server: FaultServer) -> None:
    url = pinned(server.serve(PATH, TEXT.replace(b"a.org", b"b.org")))
    with pytest.raises(IntegrityError, match="but its address says"):
        local_registries([url])
    assert not [path for path in home_folders()[0].rglob("*") if path.is_file()]


def test_a_text_that_was_changed_in_the_cache_is_fetched_again(server: FaultServer) -> None:
    url = pinned(server.serve(PATH, TEXT))
    (path,) = local_registries([url])
    path.write_bytes(TEXT.replace(b"a.org", b"b.org"))
    assert local_registries([url]) == (path,) and path.read_bytes() == TEXT
    path.write_bytes(b"entries: []")
    with pytest.raises(NetworkError, match="--offline forbids"):
        local_registries([url], offline=True)


@pytest.mark.parametrize("end", ["", "#sha256=", "#sha256=abc", "#md5=" + "0" * 64, "#sha256=" + "g" * 64])
def test_a_url_without_a_sha256_is_refused(server: FaultServer, end: str) -> None:
    with pytest.raises(UsageError, match="needs its sha256, so that it cannot change unnoticed"):
        local_registries([server.serve(PATH, TEXT) + end])
    assert server.requests == []


def test_a_server_that_has_none(server: FaultServer) -> None:
    with pytest.raises(NetworkError, match="the registry could not be fetched"):
        local_registries([pinned(f"{server.base}/nowhere.yaml")])


def test_the_environment_may_name_urls_among_paths(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, other = pinned(server.serve(PATH, TEXT)), tmp_path / "other.yaml"
    other.write_text("entries: []\n")
    monkeypatch.setenv("CKPTKIT_REGISTRY", os.pathsep.join([str(other), url, str(other)]))
    local_registries([])
    assert environment_files() == [other, cached_registry(url), other]
    assert "mine" in load_registry()
