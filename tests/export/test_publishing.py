"""Pushing to the hub: one commit with the very bytes, and each refusal in one line."""

from __future__ import annotations

import socket

import pytest

from ckptkit.base.errors import MissingDependencyError, NetworkError, UsageError
from ckptkit.cli.output import ExitCode, exit_code
from ckptkit.export.publishing import push, require_hub
from ckptkit.export.targets import ExportedFile, ExportRequest, run_export
from ckptkit.registry.loading import load_registry
from tests.support.exporting import source_of, trained, write_safetensors
from tests.support.fake_hub import COMMIT, TOKEN, FakeHub


@pytest.fixture
def client(monkeypatch):
    """huggingface_hub with a token, and without the Xet protocol, which the stand-in does not speak."""
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_XET", True)
    return hub


@pytest.fixture
def server(client, monkeypatch):
    with FakeHub() as running:
        monkeypatch.setattr(client.constants, "ENDPOINT", running.url)
        yield running


@pytest.fixture
def folder(tmp_path):
    """A small folder: what is in it does not matter to a push."""
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 5000)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# x\n", encoding="utf-8")
    return tmp_path


FILES = (ExportedFile("model.safetensors", 1_280_000), ExportedFile("README.md", 26))
CREATE = "/api/repos/create"
COMMITS = "/api/models/me/moga/commit/main"
BATCH = "/me/moga.git/info/lfs/objects/batch"


def pushed(folder, *, private=False):
    return push(folder, [file.name for file in FILES], "me/moga", private=private, message="a message")


def test_the_hub_receives_the_very_bytes_in_one_commit(server, folder):
    assert pushed(folder) == f"{server.url}/me/moga/commit/{COMMIT}"
    assert server.repositories == {"me/moga": False}
    assert server.files == {file.name: (folder / file.name).read_bytes() for file in FILES}
    assert server.commits == ["a message"]
    assert len(server.large) == 1  # the weights went as a large file
    assert f"POST {BATCH}" in server.requests


def test_a_private_repository_is_created_so(server, folder):
    pushed(folder, private=True)
    assert server.repositories == {"me/moga": True}


def test_an_existing_repository_gets_a_commit(server, folder):
    server.answers[CREATE] = 409
    server_url = pushed(folder)
    assert server_url.endswith(COMMIT)
    assert server.files.keys() == {"model.safetensors", "README.md"}


def test_who_may_write_but_not_create_gets_a_commit_too(server, folder):
    server.repositories["me/moga"] = False
    server.answers[CREATE] = 403
    assert pushed(folder).endswith(COMMIT)
    assert server.commits == ["a message"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        (CREATE, 401, "the hub does not accept the token"),
        (CREATE, 403, "the token may not write there"),
        (CREATE, 404, "the hub knows no such place"),
        (COMMITS, 401, "the hub does not accept the token"),
        (COMMITS, 403, "the token may not write there"),
        (COMMITS, 404, "the hub knows no such place"),
        (COMMITS, 418, "the hub answered 418"),
        (BATCH, 403, "the token may not write there"),
        (BATCH, 413, "the hub answered 413"),
    ],
)
def test_a_refusal_is_one_line(server, folder, path, status, words):
    server.answers[path] = status
    with pytest.raises(NetworkError, match=f"^me/moga: {words}") as refused:
        pushed(folder)
    assert "\n" not in str(refused.value)
    assert f"because of {status}" in str(refused.value)
    assert refused.value.hint
    assert exit_code(refused.value) is ExitCode.NETWORK
    assert server.commits == []


def test_a_token_that_the_hub_does_not_know(server, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    with pytest.raises(NetworkError, match=r"does not accept the token.*hf auth login"):
        pushed(folder)


def test_a_refused_part_of_the_upload_is_explained(server, folder):
    server.answers |= {f"/storage/{sha(folder)}": 403}
    with pytest.raises(NetworkError, match="the token may not write there"):
        pushed(folder)
    assert server.commits == []


def sha(folder):
    import hashlib

    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_nobody_there(client, folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(client.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(NetworkError, match=f"me/moga: cannot push to http://127.0.0.1:{port}: ") as refused:
        pushed(folder)
    assert "\n" not in str(refused.value)


def test_the_hubs_own_offline_switch(server, folder, client, monkeypatch):
    monkeypatch.setattr(client.constants, "is_offline_mode", lambda: True)
    with pytest.raises(NetworkError, match="offline"):
        pushed(folder)
    assert server.requests == []


def test_no_token_is_said_before_any_work(client, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(client.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(NetworkError, match="no token for the Hugging Face hub; set HF_TOKEN"):
        require_hub(offline=False)


def test_offline_is_said_before_any_work():
    with pytest.raises(NetworkError, match="--offline forbids"):
        require_hub(offline=True)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(
        MissingDependencyError, match=r"--push needs huggingface_hub; pip install 'huggingface_hub>="
    ):
        require_hub(offline=False)


@pytest.mark.parametrize(
    "name", ["moga", "me/", "/moga", "a/b/c", "me/mo ga", "me/..", "me/a--b", "me/x.git", ""]
)
def test_what_is_no_name(name):
    with pytest.raises(UsageError, match="is not a repository name"):
        ExportRequest(push=name)


def test_an_export_is_pushed_and_leaves_nothing_here(server, tmp_path, monkeypatch):
    file = write_safetensors(tmp_path / "m.safetensors", trained("moganet-xt"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    request = ExportRequest("hf", push="me/moga")
    outcome = run_export(source_of(file, load_registry()["moganet-xt-224"]), request)
    assert outcome.pushed == f"{server.url}/me/moga/commit/{COMMIT}"
    assert outcome.to_json()["path"] is None
    assert list((tmp_path / "here").iterdir()) == []
    assert server.commits == ["moganet-xt-224, exported by ckptkit"]
    assert b'snapshot_download("me/moga")' in server.files["README.md"]
    assert {file.name: file.nbytes for file in outcome.files} == {
        name: len(held) for name, held in server.files.items()
    }


def test_synthetic_weights_need_consent(server, tmp_path):
    from ckptkit.models.synth import Synthetic, write_file

    file = write_file(Synthetic("moganet-xt"), tmp_path / "moga.pth")
    source = source_of(file, load_registry()["moganet-xt-224"])
    request = ExportRequest("hf", push="me/moga")
    with pytest.raises(UsageError, match=r"these weights are synthetic.*--push-synthetic"):
        run_export(source, request)
    assert server.requests == []
    meant = ExportRequest("hf", push="me/moga", push_synthetic=True)
    assert run_export(source, meant).pushed is not None
    assert b"> **Synthetic weights.**" in server.files["README.md"]


def test_only_folders_for_the_hub_are_pushed():
    request = ExportRequest("backbone", push="me/moga")
    with pytest.raises(UsageError, match="--push requires --to hf or keras"):
        request.require(offline=False, synthetic=False)
