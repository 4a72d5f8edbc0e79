"""Checkpoints on servers: names and shapes come by a few ranges, and nothing else is transferred."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save, save_file

import ckptkit
from ckptkit.base.errors import CkptkitError, FormatError, NetworkError, NotFoundError, UsageError
from ckptkit.base.net import Policy
from ckptkit.formats.detect import open_reader
from ckptkit.formats.far_path import FarPath
from ckptkit.store import remote
from ckptkit.store.ranges import RangedFiles, requested_url
from tests.support.commands import runner
from tests.support.foreign_files import (
    flax_array,
    gguf_file,
    msgpack,
    onnx_graph,
    onnx_model,
    onnx_tensor,
)
from tests.support.http_server import Answer, FaultServer, Request, cut, header, redirect, status
from tests.support.running import registry_file
from tests.support.s3_server import BUCKET, s3_server

GB = 10**9


@dataclass(frozen=True)
class Sparse:
    """Bytes of which only the first are not zero; no more of them is made than is asked for."""

    head: bytes
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: slice) -> bytes:
        start, stop, _ = key.indices(self.size)
        assert stop - start <= 8 << 20, "nobody should be sent so much"
        return self.head[start:stop].ljust(stop - start, b"\0")


def large_safetensors(count: int = 500, each: int = 14_000_000) -> Sparse:
    """7 GB of half floats."""
    table = {
        f"model.layers.{n}.weight": {
            "dtype": "F16",
            "shape": [each // 2000, 1000],
            "data_offsets": [n * each, (n + 1) * each],
        }
        for n in range(count)
    }
    text = json.dumps(table).encode()
    head = len(text).to_bytes(8, "little") + text
    return Sparse(head, len(head) + count * each)


def transferred(server: FaultServer) -> int:
    """Bytes of all ranges that were asked for."""
    found = 0
    for request in server.requests:
        if request.path in server.files:
            assert request.start is not None, "a request for a whole file"
            assert request.stop is not None, "a request for the whole rest of a file"
            found += min(request.stop, len(server.files[request.path].body)) - request.start
    return found


def specs(path: Path | str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {one.name: (one.dtype, one.shape) for one in ckptkit.inspect(path).tensors}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    return runner(capsys)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def read(server: FaultServer, path: str, slept: list[float] | None = None) -> list[str]:
    """Names of the tensors of a file on the server."""
    waits = [] if slept is None else slept
    files = RangedFiles(Policy(retries=2, backoff=1.0, sleep=waits.append))
    with open_reader(FarPath(server.url(path), files)) as reader:
        return list(reader.specs)


# -- how little is transferred -------------------------------------------------------------------------------


def test_a_list_of_7_gb_takes_two_requests(server, run):
    body = large_safetensors()
    url = server.serve("/m.safetensors", body)
    assert len(body) > 7 * GB

    found = run("inspect", url, "--json")
    listed = json.loads(found.out)

    assert found.code == 0
    assert listed["totals"]["nbytes"] == 7 * GB
    assert listed["tensors"][-1]["shape"] == [7000, 1000]
    assert len(server.requests) == 2  # the first bytes; the last, where an archive would end
    assert transferred(server) <= 768 << 10
    assert "in 2 range requests" in found.err


def test_a_long_header_is_read_at_once(server):
    body = large_safetensors(count=60_000, each=120_000)
    server.serve("/m.safetensors", body)

    assert len(read(server, "/m.safetensors")) == 60_000
    assert len(server.requests) <= 4
    assert transferred(server) <= len(body.head) + (1 << 20)


def test_diff_verify_and_rules_need_no_values(server, run, tmp_path):
    url = server.serve("/m.safetensors", large_safetensors())
    other = server.serve("/n.safetensors", large_safetensors(count=499))

    same = run("diff", url, url, "--names-only")
    assert (same.code, same.out.splitlines()[0]) == (
        0,
        "same names, shapes and types: 500 tensors; values not compared",
    )
    differs = run("diff", url, other, "--names-only", "--json")
    assert differs.code == 1
    assert json.loads(differs.out)["counts"]["only_in_a"] == 1
    verified = run("verify", url, "--structure", "--json")
    assert verified.code == 0
    checks = {one["name"]: one["status"] for one in json.loads(verified.out)[0]["checks"]}
    assert (checks["container"], checks["values"], checks["checksum"]) == ("ok", "skipped", "skipped")
    drafted = run("rules", "suggest", other, url, "--json")
    assert drafted.code == 1, "a tensor of the target is not covered"
    assert json.loads(drafted.out)["by"] == "names and shapes"
    assert transferred(server) < 8 << 20


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("diff", "URL", "URL"), "--names-only"),
        (("verify", "URL"), "--structure"),
        (("inspect", "URL", "--stats"), "--stats"),
        (("convert", "URL"), "download the file"),
        (("--offline", "inspect", "URL"), "--offline forbids"),
    ],
)
def test_values_are_refused_before_any_request(server, run, command, hint):
    url = server.serve("/m.safetensors", save({"w": np.zeros(3, "f4")}))

    found = run(*(url if word == "URL" else word for word in command))

    assert found.code != 0
    assert hint in found.err
    assert server.requests == []


# -- every format that can be read so ------------------------------------------------------------------------


def arrays(count: int = 40, side: int = 300) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"layer{n:02}.weight": random.normal(size=(side, side)).astype("f4") for n in range(count)}


def as_torch(path: Path) -> Path:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in arrays().items()}, path)
    return path


def as_npz(path: Path) -> Path:
    np.savez(path, **arrays())
    return path


def as_gguf(path: Path) -> Path:
    tensors = {"w": (0, (64, 1024), bytes(64 * 1024 * 4)), "b": (0, (64,), bytes(256))}
    path.write_bytes(gguf_file(tensors))
    return path


def as_legacy_torch(path: Path) -> Path:
    import torch

    saved = {name: torch.from_numpy(array) for name, array in arrays().items()}
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    return path


def as_onnx(path: Path) -> Path:
    tensors = [onnx_tensor(name, array) for name, array in arrays().items()]
    path.write_bytes(onnx_model(onnx_graph(tensors)))
    return path


def as_flax(path: Path) -> Path:
    path.write_bytes(msgpack({"params": {name: flax_array(array) for name, array in arrays().items()}}))
    return path


def as_keras(path: Path) -> Path:
    return _converted(path, "keras")


def as_keras_archive(path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    """What ``model.save`` of Keras 3 writes."""
    weights = as_keras(path.with_suffix(".weights.h5"))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.11.0"}')
        archive.writestr("config.json", '{"module": "keras", "class_name": "Functional", "config": {}}')
        archive.write(weights, "model.weights.h5")
    return path


def as_compressed_npz(path: Path) -> Path:
    np.savez_compressed(path, **{name: np.zeros_like(array) for name, array in arrays().items()})
    return path


def as_safetensors(path: Path) -> Path:
    save_file(arrays(), path)
    return path


def _converted(path: Path, to: str) -> Path:
    source = ckptkit.synth("tiny-moat0", f"{path.parent}/source/")
    return ckptkit.convert(source, to, path)


FORMATS = {
    "m.safetensors": (as_safetensors, 2),
    "m.pth": (as_torch, 2),
    "m.npz": (as_npz, 44),  # each array has a header of its own
    "m.gguf": (as_gguf, 2),
    "m.weights.h5": (as_keras, 8),
    "m.keras": (as_keras_archive, 9),
    "compressed.npz": (as_compressed_npz, 44),
    # what describes a tensor is beside its values, so each costs a request
    "legacy.pth": (as_legacy_torch, 44),
    "m.onnx": (as_onnx, 44),
    "m.msgpack": (as_flax, 44),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_reads_as_it_does_here(server, tmp_path, name):
    write, most = FORMATS[name]
    path = write(tmp_path / name)
    url = server.serve(f"/{name}", path.read_bytes())

    far, near = ckptkit.inspect(url), ckptkit.inspect(path)

    assert far.tensors == near.tensors
    assert (far.format, far.metadata, far.extras) == (near.format, near.metadata, near.extras)
    assert len(server.requests) <= most
    if path.stat().st_size > 2 << 20:
        assert transferred(server) < path.stat().st_size / 2


@pytest.mark.parametrize("name", ["m.ckpt", "m.ckpt.index"])
def test_a_tensorflow_prefix_by_its_index(server, tmp_path, name):
    prefix = ckptkit.synth("tiny-moat0", tmp_path / "m.ckpt")
    for part in tmp_path.iterdir():
        server.serve(f"/a/{part.name}", part.read_bytes())

    found = ckptkit.inspect(server.url(f"/a/{name}"))

    assert (found.variant, found.tensors) == ("tiny-moat0", ckptkit.inspect(prefix).tensors)
    assert len(server.requests) <= 4
    assert transferred(server) < 1 << 20


def test_shards_by_their_index(server, tmp_path):
    homes = {}
    for number in (1, 2):
        shard = f"model-{number:05}-of-00002.safetensors"
        server.serve(f"/r/{shard}", save({f"w{number}": np.zeros((4, 4), "f4")}))
        homes[f"w{number}"] = shard
    index = json.dumps({"metadata": {}, "weight_map": homes}).encode()
    url = server.serve("/r/model.safetensors.index.json", index)

    assert specs(url) == {"w1": ("float32", (4, 4)), "w2": ("float32", (4, 4))}
    assert len(server.requests) == 3
    del server.files["/r/model-00002-of-00002.safetensors"]
    with pytest.raises(FormatError, match=r"shard model-00002-of-00002\.safetensors is missing"):
        ckptkit.inspect(url)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_dcp_checkpoint_by_a_file_of_it(server, tmp_path, name):
    source = as_safetensors(tmp_path / "m.safetensors")
    ckptkit.convert(source, "dcp", tmp_path / "m.dcp", layout="as-is")
    for part in (tmp_path / "m.dcp").iterdir():
        server.serve(f"/a/m.dcp/{part.name}", part.read_bytes())

    found = ckptkit.inspect(server.url(f"/a/m.dcp/{name}"))

    near = ckptkit.inspect(tmp_path / "m.dcp")
    assert (found.format, found.tensors, found.metadata) == ("dcp", near.tensors, near.metadata)
    assert len(server.requests) <= 6
    assert transferred(server) < 2 << 20
    with pytest.raises(NotFoundError, match="the server has no such file"):
        ckptkit.inspect(server.url("/a/m.dcp"))


def test_an_archive_says_what_to_do(server):
    import gzip

    url = server.serve("/m.tar.gz", gzip.compress(bytes(100_000)))
    with pytest.raises(FormatError, match="archive, whose members cannot be read by ranges"):
        ckptkit.inspect(url)


def test_a_zip_whose_members_overlap_is_refused_from_afar_too(server):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(64))
    raw = bytearray(packed.getvalue())
    second = raw.rindex(b"PK\x01\x02")
    raw[second + 42 : second + 46] = (0).to_bytes(4, "little")  # the storage begins where data.pkl does
    url = server.serve("/m.pth", bytes(raw))
    with pytest.raises(FormatError, match="overlap"):
        ckptkit.inspect(url)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"hello", "text"),
        (bytes(1000), "zero"),
    ],
)
def test_what_is_no_checkpoint_is_named(server, body, says):
    with pytest.raises(FormatError) as caught:
        ckptkit.inspect(server.serve("/m", body))
    assert says.lower() in str(caught.value).lower()


# -- what servers do -----------------------------------------------------------------------------------------


def test_a_server_without_ranges_is_told_so(server):
    body = large_safetensors()
    server.serve("/m.safetensors", body)

    def whole(_request: Request, _answer: Answer) -> Answer:
        return Answer(200, (("Content-Length", str(len(body))),), body[:100_000])

    server.fail("/m.safetensors", whole)
    with pytest.raises(NetworkError, match="does not answer range requests") as caught:
        read(server, "/m.safetensors")
    assert "download the file" in str(caught.value.hint)
    assert len(server.requests) == 1


def test_a_small_file_may_come_whole(server):
    """Nothing more is transferred than was asked for."""
    server.serve("/m.safetensors", save({"w": np.zeros(3, "f4")}), ranges=False)
    assert read(server, "/m.safetensors") == ["w"]


@pytest.mark.parametrize("etag", ['"v2"', 'W/"v2"'])
def test_a_file_that_changes_is_an_error(server, etag):
    first = '"v1"' if etag[0] == '"' else 'W/"v1"'
    server.serve("/m.safetensors", large_safetensors(), etag=first)

    def another(_request: Request, answer: Answer) -> Answer:
        return answer.with_header("ETag", etag)

    server.fail("/m.safetensors", lambda _request, answer: answer, another)
    with pytest.raises(NetworkError, match="changed"):
        read(server, "/m.safetensors")
    assert server.requests[1].headers.get("if-range") == (first if first[0] == '"' else None)


def test_a_file_replaced_on_the_server_is_an_error(server):
    """If-Range is answered with the whole new file, which is not read."""
    server.serve("/m.safetensors", large_safetensors())

    def new(_request: Request, _answer: Answer) -> Answer:
        return Answer(200, (("ETag", '"v2"'), ("Content-Length", str(9 * GB))), b"\0" * 100_000)

    server.fail("/m.safetensors", lambda _request, answer: answer, new)
    with pytest.raises(NetworkError, match="the file on the server has changed"):
        read(server, "/m.safetensors")


def test_a_broken_answer_is_asked_for_again(server):
    server.serve("/m.safetensors", large_safetensors())
    slept: list[float] = []
    server.fail("/m.safetensors", cut(1000), status(503))
    assert len(read(server, "/m.safetensors", slept)) == 500
    assert len(slept) == 2
    server.fail("/m.safetensors", *[status(503)] * 5)
    with pytest.raises(NetworkError, match="503"):
        read(server, "/m.safetensors", slept)


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (status(404), NotFoundError, "the server has no such file"),
        (status(401), NetworkError, "401 Unauthorized"),
        (status(403), NetworkError, "403 Forbidden"),
        (header("Content-Range", "bytes 5-9/10"), NetworkError, "another part than asked for"),
        (header("Content-Encoding", "gzip"), NetworkError, "not asked for"),
        (redirect("http://example.org/m"), NetworkError, "which is not followed"),
    ],
)
def test_other_answers_are_named(server, fault, kind, says):
    server.serve("/m.safetensors", large_safetensors())
    server.fail("/m.safetensors", *[fault] * 4)
    with pytest.raises(kind, match=says):
        read(server, "/m.safetensors")


def test_redirects_are_followed_and_logins_stay(server, run):
    with FaultServer() as storage:
        storage.serve("/blob", save({"w": np.zeros(3, "f4")}))
        server.serve("/m.safetensors", b"")
        server.fail("/m.safetensors", *[redirect(storage.url("/blob"))] * 4)
        url = server.url("/m.safetensors?token=tok-secret").replace("http://", "http://me:pw-secret@")

        found = run("inspect", url)

        assert found.code == 0
        assert "secret" not in found.out + found.err
        assert "authorization" in server.requests[0].headers
        assert "authorization" not in storage.requests[0].headers
        assert "token=tok-secret" in server.requests[0].target


def test_what_is_asked_of_one_file_is_bounded(server, monkeypatch):
    monkeypatch.setattr("ckptkit.store.ranges._MOST_BYTES", 1 << 20)
    server.serve("/m.safetensors", large_safetensors(count=60_000, each=120_000))
    with pytest.raises(UsageError, match="were not enough"):
        read(server, "/m.safetensors")
    assert transferred(server) <= 1 << 20


# -- the Hugging Face hub, object stores, entries ------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(server, monkeypatch):
    """A stand-in for the hub, with one repository."""
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "optimizer.pt"]
    listing = {"sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
    for revision in ("main", "v1.0", "refs%2Fpr%2F1"):
        server.serve(f"/api/models/org/name/revision/{revision}", json.dumps(listing).encode())
    for revision in (COMMIT, "main", "v1.0"):
        body = save({f"at.{revision[:4]}": np.zeros(3, "f4")})
        server.serve(f"/org/name/resolve/{revision}/model.safetensors", body)
    return server


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("hf://org/name", "at.0123"),
        ("hf://org/name@v1.0", "at.0123"),
        ("hf://org/name@refs%2Fpr%2F1", "at.0123"),
        ("hf://org/name/model.safetensors", "at.main"),
        ("hf://org/name@v1.0/model.safetensors", "at.v1.0"),
    ],
)
def test_a_repository_on_the_hub(hub, url, name):
    assert list(specs(url)) == [name]
    assert not any("authorization" in request.headers for request in hub.requests)  # it is another host


def test_a_repository_of_several_checkpoints_asks_which(hub, run):
    listing = {"sha": COMMIT, "siblings": [{"rfilename": "a.gguf"}, {"rfilename": "b.gguf"}]}
    hub.serve("/api/models/org/name/revision/main", json.dumps(listing).encode())
    with pytest.raises(UsageError) as caught:
        ckptkit.inspect("hf://org/name")
    assert "hf://org/name/a.gguf" in str(caught.value.hint)
    hub.serve("/api/models/org/name/revision/main", b"<html>")
    with pytest.raises(NetworkError, match="does not list"):
        ckptkit.inspect("hf://org/name")
    with pytest.raises(NetworkError, match="404"):
        ckptkit.inspect("hf://org/other")
    with pytest.raises(UsageError, match="names no repository"):
        ckptkit.inspect("hf://org")


def test_the_plain_address_of_a_file_on_the_hub(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert requested_url("hf://datasets/a/b/c d.npz") == (
        "https://huggingface.co/datasets/a/b/resolve/main/c%20d.npz"
    )


def test_an_object_in_s3():
    with s3_server() as files:
        body = large_safetensors(count=20, each=1_000_000)
        files.pipe_file(f"{BUCKET}/m.safetensors", body.head + bytes(20_000_000))
        ranged = RangedFiles()
        with open_reader(FarPath(f"s3://{BUCKET}/m.safetensors", ranged)) as reader:
            assert len(reader.specs) == 20
        file = ranged.open(f"s3://{BUCKET}/m.safetensors")
        assert file is not None
        assert (file.requests, file.received < 1 << 20) == (2, True)
        assert ranged.open(f"s3://{BUCKET}/none.safetensors") is None


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_an_object_in_another_store(scheme, run, monkeypatch):
    """Through fsspec's own store in memory; gcsfs and adlfs themselves are not installed here."""
    monkeypatch.setitem(remote.STORES, scheme, replace(remote.STORES[scheme], protocol="memory"))
    files = fsspec.filesystem("memory")
    body = large_safetensors(count=20, each=1_000_000)
    files.pipe_file("/bucket/m.safetensors", body.head + bytes(20_000_000))
    url = f"{scheme}://bucket/m.safetensors"

    found = run("inspect", url, "--json")
    assert (found.code, len(json.loads(found.out)["tensors"])) == (0, 20)
    assert "of 20.0 MB in 2 range requests" in found.err
    assert run("diff", url, url, "--names-only").code == 0
    assert run("inspect", f"{scheme}://bucket/none.safetensors").code == 3
    files.rm("/bucket/m.safetensors")


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_store_whose_package_is_missing(scheme, package, run, monkeypatch):
    def missing(_protocol):
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", missing)
    found = run("inspect", f"{scheme}://bucket/m.safetensors")
    assert (found.code, f"needs {package}; pip install {package}" in found.err) == (6, True), found.err


def test_what_the_package_of_a_store_logs_is_not_shown(run, monkeypatch):
    """A logger without a handler writes to standard error, with a traceback."""
    monkeypatch.setitem(remote.STORES, "gs", replace(remote.STORES["gs"], protocol="memory"))

    def info(self, path, **_):
        logging.getLogger("gcsfs").warning("out of retries")
        raise FileNotFoundError(path)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", info)
    written = io.StringIO()
    monkeypatch.setattr(logging.lastResort, "_stderr", written, raising=False)
    with contextlib.redirect_stderr(written):
        assert run("inspect", "gs://bucket/m.safetensors").code == 3
    assert "out of retries" not in written.getvalue()


def test_an_entry_that_is_not_fetched(server, run, tmp_path):
    good = server.serve("/m.safetensors", save({"w": np.zeros(3, "f4")}))
    archive = server.serve("/m.tar.gz", b"")
    gone = server.url("/gone.safetensors")

    def overlay(*urls: str) -> Path:
        return registry_file(tmp_path, {"id": "far-one", "sources": [{"url": url} for url in urls]})

    found = run("--registry", overlay(archive, gone, good), "inspect", "far-one")
    assert (found.code, "far-one is not in the cache; reading the header of" in found.err) == (0, True)
    assert [request.path for request in server.requests][:2] == ["/gone.safetensors", "/m.safetensors"]
    server.requests.clear()
    for words in (("--offline", "inspect"), ("inspect", "--stats"), ("verify",), ("inspect", "--security")):
        found = run("--registry", overlay(good), *words, "far-one")
        assert (found.code, "far-one is not in the cache" in found.err) == (3, True)
    same = run("--registry", overlay(good), "diff", "far-one", good, "--names-only")
    assert (same.code, "same names, shapes and types: 1 tensor" in same.out) == (0, True)
    server.requests.clear()
    found = run("--registry", overlay(archive), "inspect", "far-one")
    assert "ckptkit fetch far-one" in found.err
    assert server.requests == []


# -- a far path among paths ----------------------------------------------------------------------------------


class Nowhere:
    """Files of which there are none."""

    def open(self, url: str) -> None:
        return None


def test_a_far_path_is_a_path():
    path = FarPath("https://me:pw@a.org/x/m.ckpt.index?sig=1", Nowhere())
    assert str(path) == f"{path}" == "https://a.org/x/m.ckpt.index"
    assert (path.name, path.suffix, path.is_dir(), path.exists()) == ("m.ckpt.index", ".index", False, False)
    beside = path.with_name("m.ckpt.data-00000-of-00001")
    assert str(beside) == "https://a.org/x/m.ckpt.data-00000-of-00001"
    assert beside._url == "https://me:pw@a.org/x/m.ckpt.data-00000-of-00001?sig=1"
    assert str(path.parent / "n") == "https://a.org/x/n"
    assert (path.parent / "%2e%2e/a b?c#d")._url == "https://me:pw@a.org/x/%252e%252e/a%20b%3Fc%23d?sig=1"
    assert (path.parent / "a b").name == "a b"
    assert str(path.with_suffix(".meta")) == "https://a.org/x/m.ckpt.meta"
    assert path.absolute() is path.resolve() is path
    assert list(path.parent.glob("*")) == []
    with pytest.raises(FileNotFoundError):
        path.stat()
    with pytest.raises(NotADirectoryError):
        next(path.iterdir())


def test_values_are_refused_at_the_reader_too(server):
    url = server.serve("/m.npz", _npz())
    files = RangedFiles()
    with open_reader(FarPath(url, files)) as reader, pytest.raises(CkptkitError, match="values"):
        reader.read("w")


def _npz() -> bytes:
    packed = io.BytesIO()
    np.savez(packed, w=np.zeros((3, 3), "f4"))
    return packed.getvalue()
