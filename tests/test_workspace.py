"""A name is an entry or a path; what is not here is fetched or named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptkit.demo import demo_workspace, serve_synthetic
from ckptkit.errors import NetworkError, NotFoundError
from ckptkit.synth import Synthetic, write_bundle
from ckptkit.workspace import Workspace


@pytest.fixture
def workspace():
    return Workspace(offline=True, note=lambda _: None, warn=lambda _: None)


@pytest.fixture
def served(tmp_path, workspace):
    """A workspace whose tiny-moat0-256-noposemb is really served, and its entry."""
    entry = workspace.registry["tiny-moat0-256-noposemb"]
    with serve_synthetic(entry, tmp_path / "served") as server:
        yield demo_workspace(tmp_path, server, workspace), entry


@pytest.mark.parametrize("what", ["missing/model.ckpt", "missing.safetensors", "missing.tar.gz"])
def test_a_path_that_is_not_there(workspace, what):
    with pytest.raises(NotFoundError, match="no such file"):
        workspace.locate(what)


def test_a_wrong_id_gets_the_nearest_ones(workspace):
    with pytest.raises(NotFoundError, match="moat2-384"):
        workspace.locate("moat2-348")


def test_a_prefix_a_folder_and_a_file_are_paths(workspace, tmp_path):
    write_bundle(Synthetic("tiny-moat0"), tmp_path / "model.ckpt")
    for path in (tmp_path / "model.ckpt", tmp_path / "model.ckpt.index", tmp_path):
        located = workspace.locate(str(path))
        assert (located.path, located.entry) == (path, None)


def test_an_id_wins_over_a_file_of_that_name_in_this_folder(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moat0-224").write_bytes(b"x")
    assert not workspace.is_path("moat0-224")
    assert workspace.is_path("./moat0-224")


def test_offline_an_entry_that_is_not_here_is_a_network_error(workspace):
    with pytest.raises(NetworkError, match="moat0-224"):
        workspace.locate("moat0-224")


def test_without_fetching_an_entry_that_is_not_here_says_how_to_get_it(workspace):
    with pytest.raises(NotFoundError, match="ckptkit fetch moat0-224"):
        workspace.locate("moat0-224", fetch=False)


def test_fetched_entries_are_found_by_id_and_by_their_path_in_the_cache(served):
    workspace, entry = served
    located = workspace.locate(entry.id)
    assert (located.entry, located.name) == (entry, entry.id)
    assert located.artefact.name == "tiny_moat0_imagenet_1k_256_wo_position_embedding.tar.gz"
    again = replace(workspace, offline=True)
    assert again.locate(entry.id).path == located.path
    assert again.locate(located.path).entry == entry
    assert again.locate(located.path).sha256 == located.sha256
    assert [found.name for found in again.fetched()] == [entry.id]


def test_nothing_fetched_is_an_empty_list(workspace):
    assert workspace.fetched() == []


def test_a_path_in_the_cache_is_used_when_it_is_worked_on_and_not_when_it_is_verified(served):
    workspace, entry = served
    path = workspace.locate(entry.id).path
    stamp = workspace.home.path / "used" / entry.id
    for fetch in (False, True):
        stamp.unlink(missing_ok=True)
        assert workspace.locate(path, fetch=fetch).entry == entry
        assert stamp.exists() is fetch
