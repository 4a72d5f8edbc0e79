"""Pictures that are named: files, folders, URLs, standard input."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from ckptkit.base.errors import FormatError, NetworkError, NotFoundError, UsageError
from ckptkit.base.net import Policy
from ckptkit.models.images.gathering import MOST_BYTES, Gatherer, download_picture, is_url
from ckptkit.store.sources import parse_mirrors
from tests.support.http_server import FaultServer, chunked, cut, header, redirect, reset, stall, status, whole
from tests.support.pictures import drawn, encoded, save

BODY = bytes(range(256)) * 1000


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


def fetch(url, **options):
    waits: list[float] = []
    policy = Policy(read_timeout=0.5, retries=2, sleep=waits.append, backoff=0.25, chance=lambda: 0.0)
    return download_picture(url, name="cat", policy=policy, **options), waits


def test_whole_and_with_progress(server):
    seen = []

    class Shown:
        def __init__(self, description, total):
            seen.append((description, total))

        def __enter__(self):
            return seen.append

        def __exit__(self, *_):
            return None

    content, waits = fetch(server.serve("/cat.png", BODY), progress=Shown)
    assert (content, waits) == (BODY, [])
    assert seen[0] == ("fetching cat", len(BODY))
    assert sum(seen[1:]) == len(BODY)
    assert [request.headers.get("range") for request in server.requests] == [None]


@pytest.mark.parametrize(
    "fault", [cut(100_000), reset(100_000), stall(100_000), status(503), chunked(ends=False)]
)
def test_a_fault_that_passes_is_borne(server, fault):
    url = server.serve("/cat.png", BODY)
    server.fail("/cat.png", fault, fault)
    content, waits = fetch(url)
    assert content == BODY
    assert waits == [0.25, 0.5]


def test_one_that_stays_is_told(server):
    url = server.serve("/cat.png", BODY)
    server.fail("/cat.png", *[cut(1000)] * 3)
    with pytest.raises(NetworkError, match=r"cat: connection lost after .* try again later"):
        fetch(url)
    assert len(server.requests) == 3


def test_retry_after_is_obeyed(server):
    url = server.serve("/cat.png", BODY)
    server.fail("/cat.png", status(429, ("Retry-After", "7")))
    assert fetch(url) == (BODY, [7.0])


@pytest.mark.parametrize(
    ("code", "kind"), [(404, NotFoundError), (410, NotFoundError), (403, NetworkError), (418, NetworkError)]
)
def test_refusals_are_not_repeated(server, code, kind):
    server.fail("/cat.png", status(code))
    with pytest.raises(kind, match=f"cat: {code}"):
        fetch(server.url("/cat.png"))
    assert len(server.requests) == 1


def test_redirects_are_followed_but_not_anywhere(server):
    server.serve("/real.png", BODY)
    server.fail("/cat.png", redirect("/real.png"), redirect("file:///etc/passwd"))
    assert fetch(server.url("/cat.png"))[0] == BODY
    with pytest.raises(NetworkError, match="which is not followed"):
        fetch(server.url("/cat.png"))


def test_a_server_whose_certificate_nobody_vouches_for_is_refused(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    pem = tmp_path / "both.pem"
    made = subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext "
        f"subjectAltName=IP:127.0.0.1 -keyout {pem} -out {tmp_path / 'certificate.pem'}".split(),
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("this openssl makes no such certificate")
    pem.write_bytes(pem.read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    with FaultServer(certificate=pem) as server:
        url = server.serve("/cat.png", BODY)
        with pytest.raises(NetworkError, match="not trusted"):
            fetch(url)


class TestSize:
    def test_what_is_too_large_is_refused_before_it_is_read(self, server):
        url = server.serve("/cat.png", BODY)
        server.fail("/cat.png", header("Content-Length", str(10**12)))
        with pytest.raises(FormatError, match="cat: more than 50,000,000 bytes"):
            fetch(url)
        assert fetch(url, most_bytes=len(BODY))[0] == BODY
        with pytest.raises(FormatError, match="cat: more than 255,999 bytes"):
            fetch(url, most_bytes=len(BODY) - 1)

    def test_of_unknown_length_too(self, server):
        url = server.serve("/cat.png", BODY)
        server.fail("/cat.png", chunked(ends=True))
        with pytest.raises(FormatError, match="more than 100,000 bytes"):
            fetch(url, most_bytes=100_000)

    def test_packed_small_and_unpacked_large_too(self, server):
        packed = gzip.compress(bytes(300_000))
        assert len(packed) < 1000
        server.fail("/cat.png", whole(packed, ("Content-Encoding", "gzip")))
        with pytest.raises(FormatError, match="more than 200,000 bytes"):
            fetch(server.url("/cat.png"), most_bytes=200_000)


def test_a_coding_is_taken_off(server):
    server.fail("/cat.png", whole(gzip.compress(BODY), ("Content-Encoding", "gzip")))
    assert fetch(server.url("/cat.png"))[0] == BODY


def test_files_of_this_machine(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(BODY)
    assert fetch(path.as_uri())[0] == BODY
    with pytest.raises(NotFoundError, match="cat: no such file"):
        fetch((tmp_path / "none.png").as_uri())
    with pytest.raises(FormatError, match="cat: not a regular file"):
        fetch(tmp_path.as_uri())


image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, other files, a folder that is called like a picture, and a folder of pictures."""
    for name in ("b.PNG", "a.jpg", "c.webp", "deeper/d.png"):
        save(drawn(8, 8), tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(gathering):
    return [Path(picture.name).name for picture in gathering.pictures]


class TestFilesAndFolders:
    def test_a_folder_gives_its_pictures_sorted(self, folder):
        assert names(Gatherer().gather([folder])) == ["a.jpg", "b.PNG", "c.webp"]
        assert names(Gatherer(recursive=True).gather([str(folder)])) == ["a.jpg", "b.PNG", "c.webp", "d.png"]

    def test_links_to_folders_are_followed_but_not_in_a_circle(self, folder, tmp_path_factory):
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        save(drawn(8, 8), elsewhere / "e.png")
        (folder / "deeper" / "link").symlink_to(elsewhere)
        (folder / "deeper" / "up").symlink_to("..")
        found = ["a.jpg", "b.PNG", "c.webp", "d.png", "e.png"]
        assert names(Gatherer(recursive=True).gather([folder])) == found

    def test_links_that_lead_to_one_folder_by_very_many_ways_are_refused(self, tmp_path):
        """Two links a folder to the next: 2**30 ways to the last."""
        for number in range(30):
            (tmp_path / f"{number}").mkdir()
        for number in range(29):
            for name in ("a", "b"):
                (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
        (fault,) = Gatherer(recursive=True).gather([tmp_path / "0"]).faults
        assert "links lead to it by more than 64 ways" in str(fault.error)

    def test_folders_nested_very_deep_are_refused(self, tmp_path):
        deepest = tmp_path
        for _ in range(150):
            deepest = deepest / "d"
        deepest.mkdir(parents=True)
        (fault,) = Gatherer(recursive=True).gather([tmp_path]).faults
        assert "more than 100 folders deep" in str(fault.error)

    def test_order_and_repetitions_stay_as_named(self, folder):
        given = [folder / "c.webp", folder / "a.jpg", folder / "c.webp"]
        assert names(Gatherer().gather(given)) == ["c.webp", "a.jpg", "c.webp"]

    def test_nothing_is_read_before_its_turn(self, folder):
        (folder / "a.jpg").write_bytes(b"damaged")
        gathering = Gatherer().gather([folder])
        assert gathering.faults == ()
        with pytest.raises(FormatError, match=r"a\.jpg: not an image"):
            gathering.pictures[0].read()
        assert gathering.pictures[1].read().size == (8, 8)

    def test_what_is_not_there_is_told_beside_the_rest(self, folder):
        gathering = Gatherer().gather(["none.png", folder / "a.jpg", folder / "folder.png"])
        assert names(gathering) == ["a.jpg"]
        missing, empty = gathering.faults
        assert (missing.name, str(missing.error)) == ("none.png", "none.png: no such image; check the path")
        assert isinstance(empty.error, NotFoundError)
        assert "no image in this folder" in str(empty.error)
        assert "--recursive" in str(empty.error)
        assert not gathering.is_single

    def test_a_file_of_another_ending_is_taken_when_named(self, folder):
        (folder / "a.jpg").rename(folder / "picture")
        assert Gatherer().gather([folder / "picture"]).pictures[0].read().size == (8, 8)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_a_pipe_in_a_folder_is_not_waited_for(self, folder):
        os.mkfifo(folder / "pipe.png")
        assert "pipe.png" not in names(Gatherer().gather([folder]))

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_a_pipe_that_is_named_is_read(self, folder):
        """As in ``ckptkit predict ID <(convert cat.heic png:-)``."""
        os.mkfifo(folder / "pipe")
        (found,) = Gatherer().gather([folder / "pipe"]).pictures
        content = encoded(drawn(9, 7))
        writer = threading.Thread(target=(folder / "pipe").write_bytes, args=(content,))
        writer.start()
        assert found.read().size == (9, 7)
        writer.join()

    def test_a_name_that_is_no_unicode_can_be_said(self, folder):
        path = folder / os.fsdecode(b"\xff.png")
        try:
            save(drawn(8, 8), path)
        except OSError:
            pytest.skip("this file system has no such names")
        (found,) = Gatherer().gather([path]).pictures
        assert found.read().size == (8, 8)
        assert found.name.encode().endswith(rb"\udcff.png")

    def test_is_single_counts_pictures_and_faults(self, folder):
        assert Gatherer().gather([folder / "a.jpg"]).is_single
        assert Gatherer().gather(["none.png"]).is_single
        assert not Gatherer().gather([folder]).is_single
        assert not Gatherer().gather([]).is_single


class TestStandardInput:
    def test_a_picture(self):
        picture = drawn(9, 7)
        (found,) = Gatherer(stdin=io.BytesIO(encoded(picture))).gather(["-"]).pictures
        assert found.name == "stdin"
        np.testing.assert_array_equal(np.asarray(found.read()), np.asarray(picture))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "stdin: empty"),
            (b"words", "stdin: not an image"),
            (bytes(MOST_BYTES + 1), "more than 50,000,000"),
        ],
        ids=["nothing", "words", "too much"],
    )
    def test_what_is_no_picture(self, content, message):
        (found,) = Gatherer(stdin=io.BytesIO(content)).gather(["-"]).pictures
        with pytest.raises(FormatError, match=message):
            found.read()

    def test_a_terminal_is_not_waited_for(self):
        class Terminal(io.BytesIO):
            def isatty(self) -> bool:
                return True

        for stdin in (Terminal(), None):
            (found,) = Gatherer(stdin=stdin).gather(["-"]).pictures
            with pytest.raises(UsageError, match="no picture on standard input"):
                found.read()

    def test_it_can_be_read_once(self):
        with pytest.raises(UsageError, match="named twice"):
            Gatherer().gather(["-", "cat.jpg", "-"])


class TestDecodedPictures:
    def test_any_mode_by_its_place_or_its_file(self, folder):
        opened = image.open(folder / "a.jpg")
        gathering = Gatherer().gather([image.new("L", (3, 2), 7), opened])
        assert [picture.name for picture in gathering.pictures] == ["picture 1", str(folder / "a.jpg")]
        assert gathering.pictures[0].read().getpixel((0, 0)) == (7, 7, 7)

    def test_one_whose_file_is_damaged_is_told_when_it_is_read(self, folder):
        content = (folder / "b.PNG").read_bytes()
        (folder / "b.PNG").write_bytes(content[:-40])
        (found,) = Gatherer().gather([image.open(folder / "b.PNG")]).pictures
        with pytest.raises(FormatError, match=r"b\.PNG: damaged image"):
            found.read()

    def test_anything_else_is_refused(self):
        (fault,) = Gatherer().gather([3]).faults
        assert isinstance(fault.error, UsageError)


class TestUrls:
    def test_from_a_server_and_from_this_machine(self, folder):
        with FaultServer() as server:
            url = server.serve("/x/cat.png", encoded(drawn(9, 7)))
            gathering = Gatherer().gather([f"{url}?token=secret", (folder / "a.jpg").as_uri()])
            assert [picture.read().size for picture in gathering.pictures] == [(9, 7), (8, 8)]
            assert gathering.pictures[0].name == url, "without its secrets"

    def test_mirrors_and_offline(self, folder):
        mirrors = parse_mirrors([f"https://pictures.example/={folder.as_uri()}/"], "")
        offline = Gatherer(offline=True, mirrors=mirrors)
        gathering = offline.gather(
            ["https://pictures.example/a.jpg", "https://me:pw@elsewhere.example/b.png?key=1"]
        )
        assert gathering.pictures[0].read().size == (8, 8)
        assert gathering.pictures[0].name == "https://pictures.example/a.jpg"
        (fault,) = gathering.faults
        assert fault.name == "https://elsewhere.example/b.png"
        assert isinstance(fault.error, NetworkError)
        assert str(fault.error) == (
            "https://elsewhere.example/b.png is on the network, and --offline forbids fetching it; "
            "run without --offline"
        )

    @pytest.mark.parametrize(
        "name", ["C:\\cat.jpg", "a:b.png", "ftp://a.org/x.png", "http:/x.png", "//x/y.png"]
    )
    def test_what_is_no_url(self, name):
        assert not is_url(name)
        (fault,) = Gatherer().gather([name]).faults
        assert isinstance(fault.error, NotFoundError)
