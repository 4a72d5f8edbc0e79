"""The examination of a machine: packages, folders, variables, hosts and devices in every state.

Packages have metadata made for the purpose, hosts are real sockets, and GPUs are asked of real processes that
answer, fail, crash and hang, in place of nvidia-smi and the frameworks.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ckptkit import doctor
from ckptkit._version import __version__
from ckptkit.base.home import NOWHERE
from ckptkit.base.net import Policy
from ckptkit.base.packages import Requirement, requirements
from ckptkit.doctor import (
    EXTRAS,
    GITHUB_API,
    Examination,
    Finding,
    Host,
    ask_host,
    check_environment,
    check_extras,
    check_folders,
    check_hosts,
    check_lock_file,
    check_machine,
    check_packages,
    check_registries,
    check_terminal,
    check_versions,
    compared,
    driver,
    examine,
    framework,
    hosts_of,
    ok,
    probe,
)
from ckptkit.registry.loading import load_registry
from ckptkit.registry.query import Registry
from ckptkit.store.sources import parse_mirrors
from tests.conftest import REPOSITORY
from tests.support.entries import entry_of
from tests.support.http_server import FaultServer, header, raw, redirect, stall, status
from tests.support.running import finish, start


@pytest.fixture
def _no_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing two frameworks takes long; other tests ask them."""
    monkeypatch.setattr(doctor, "questions", lambda: [doctor.driver])
    monkeypatch.setenv("PATH", "/nowhere")


SECTIONS = [
    *("versions", "packages", "extras", "cache", "registry", "environment"),
    *("network", "devices", "machine", "terminal"),
]


@pytest.mark.usefixtures("_no_frameworks")
def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch):
    def never(*_arguments: object, **_options: object) -> list[Finding]:
        raise AssertionError("asked")

    monkeypatch.setattr(doctor, "check_hosts", never)
    found = examine(offline=True)
    assert list(found.sections) == SECTIONS
    assert [one.detail for one in found.findings if one.section == "network"] == [
        "not asked: --offline is given"
    ]
    assert found.ok
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.usefixtures("_no_frameworks")
def test_hosts_are_asked_through_the_mirrors(server: FaultServer, monkeypatch: pytest.MonkeyPatch):
    few = Registry([entry_of("https://a.org/m.pth", log_url="https://b.org/x.csv")])
    monkeypatch.setattr(doctor, "check_registries", lambda _overlays: ([], few))
    found = examine(mirrors=[f"https://a.org={server.base}", f"https://b.org={server.base}"])
    asked = {one.name: one for one in found.findings if one.section == "network"}
    assert {name: (one.verdict, one.detail) for name, one in asked.items()} == {
        f"127.0.0.1:{server.port}": ("ok", "reachable (1 file, 1 log)")
    }
    assert [request.path for request in server.requests] == ["/"]


@pytest.mark.usefixtures("_no_frameworks")
def test_a_wrong_mirror_rule_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CKPTKIT_MIRROR", "nonsense")
    found = examine(offline=True)
    assert [(one.section, one.name) for one in found.of("problem")] == [("environment", "CKPTKIT_MIRROR")]
    found = examine(offline=True, mirrors=["more nonsense"])
    assert [one.name for one in found.of("problem")] == ["CKPTKIT_MIRROR", "mirrors"]


@pytest.mark.usefixtures("_no_frameworks")
def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch):
    def fails() -> Finding:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(doctor, "questions", lambda: [fails])
    steps: list[int] = []
    found = examine(offline=True, advance=steps.append)
    assert "cannot be started: Resource temporarily unavailable" in [
        one.detail for one in found.findings if one.section == "devices"
    ]
    assert steps == [1]


def test_verdicts():
    findings = tuple(Finding("a", verdict, verdict, "x") for verdict in ("ok", "note", "problem"))
    assert Examination(findings[:2]).ok and not Examination(findings).ok
    values = Examination(findings).to_json()
    assert (values["ok"], values["notes"], values["problems"], len(values["findings"])) == (False, 1, 1, 3)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that Python finds first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, name: str, version: str, *, module: str | None = None) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if module:
        (site / f"{module}.py").write_text("raise RuntimeError('nobody may import this')\n")


def named(findings: Iterable[Finding], name: str) -> Finding:
    (finding,) = (one for one in findings if one.name == name)
    return finding


def test_versions():
    found = {one.name: one.detail for one in check_versions()}
    assert found["ckptkit"] == __version__
    assert found["Python"].startswith(platform.python_version()) and sys.executable in found["Python"]


def test_extras(site: Path):
    install(site, "fakeone", "1.5", module="fakeone")
    install(site, "fakeold", "0.9", module="fakeold")
    install(site, "fakegone", "1.5")
    found = check_extras(
        [
            Requirement("fakeone", ">=1,<2", "a"),
            Requirement("fakeone", ">=1,<2", "b"),
            Requirement("fakemissing", ">=1,<2", "b"),
            Requirement("fakeold", ">=1,<2", "c"),
            Requirement("fakegone", "", "d"),
            Requirement("fakealways", "", ""),
        ]
    )
    gone = "fakegone 1.5 is recorded, but the package itself is not there"
    assert [(one.name, one.verdict, one.detail, one.hint) for one in found] == [
        ("a", "ok", "fakeone 1.5", ""),
        ("b", "optional", "not installed", "pip install 'fakemissing>=1,<2'"),
        ("c", "note", "fakeold 0.9, but >=1,<2 is supported", "pip install 'fakeold>=1,<2'"),
        ("d", "note", gone, "pip install --force-reinstall fakegone"),
    ]


def test_every_extra_says_what_it_is_for():
    assert {one.extra for one in requirements()} - {""} == set(EXTRAS)


def test_what_is_always_needed(site: Path):
    install(site, "fakeone", "1.5", module="fakeone")
    install(site, "fakeold", "0.9", module="fakeold")
    found = check_packages([Requirement(name, ">=1") for name in ("fakeone", "fakeold", "fakemissing")])
    assert [one.verdict for one in found] == ["ok", "note", "problem"]
    assert found[0].detail == "1 package, as supported"
    assert found[2].hint == "pip install 'fakemissing>=1'"


def test_a_package_that_an_import_hook_hides(site: Path, monkeypatch: pytest.MonkeyPatch):
    install(site, "fakeone", "1.5", module="fakeone")
    monkeypatch.setitem(sys.modules, "fakeone", None)
    (finding,) = check_extras([Requirement("fakeone", "", "a")])
    assert finding.verdict == "note"
    assert finding.hint == "pip install --force-reinstall fakeone"


def test_every_package_installed_here_is_found():
    """Each has a module of the name that is looked for, or is listed under another."""
    found = [*check_packages(), *check_extras()]
    assert [one for one in found if "itself is not there" in one.detail] == []
    assert named(found, "always needed").verdict == "ok"


def test_without_metadata(monkeypatch: pytest.MonkeyPatch):
    def nothing(_name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(_name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    (finding,) = check_packages()
    assert finding.verdict == "note" and "without being installed" in finding.detail


def test_another_project_of_the_same_name_is_a_problem(site: Path):
    assert [one for one in check_versions() if one.verdict != "ok"] == []
    install(site, "ckptkit", "0.3.0")
    (finding,) = [one for one in check_versions() if one.verdict == "problem"]
    assert str(site / "ckptkit-0.3.0.dist-info") in finding.detail
    assert finding.hint.startswith("pip uninstall ckptkit; then install ckptkit-cli again")


def test_a_second_copy_of_the_package_is_noted(site: Path):
    (site / "ckptkit").mkdir()
    (site / "ckptkit" / "__init__.py").touch()
    found = named(check_versions(), "second copy")
    assert found.verdict == "note" and found.detail.startswith(str(site / "ckptkit"))


@pytest.mark.parametrize(
    ("folder", "file", "author", "told"),
    [
        ("ckptkit-0.3.0.dist-info", "METADATA", "Somebody else", True),
        ("ckptkit.egg-info", "PKG-INFO", "Somebody else", True),
        ("ckptkit-0.1.0.dist-info", "METADATA", "The ckptkit authors", False),  # from before the new name
        ("ckptkit_cli-0.1.0.dist-info", "METADATA", "The ckptkit authors", False),
        ("ckptkit_more-1.0.dist-info", "METADATA", "Somebody else", False),
    ],
)
def test_an_import_tells_of_another_project_in_the_same_environment(
    tmp_path: Path, folder: str, file: str, author: str, told: bool
):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).write_text(f"Name: ckptkit\nVersion: 0.3.0\nAuthor: {author}\nLicense: MIT\n")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)]), "PATH": ""}
    command = [sys.executable, "-c", "import ckptkit; import ckptkit.cli.options"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (str(tmp_path / folder) in done.stderr) is told
    assert done.stderr.count("pip uninstall ckptkit; then install ckptkit-cli again") == told


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("CKPTKIT_HOME", str(folder))
    return folder


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "home_folders", lambda: [NOWHERE])
    (found,) = doctor.check_folders()
    assert (found.verdict, found.hint) == ("problem", "set CKPTKIT_HOME to a folder")
    assert "no home folder is known" in found.detail


def test_what_somebody_else_made_below_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "artefacts").mkdir()
    monkeypatch.setattr(doctor, "home_folders", lambda: [tmp_path])
    assert [one for one in doctor.check_folders() if one.verdict != "ok"] == []
    monkeypatch.setattr(doctor, "is_writable", lambda path: path.name != "artefacts")
    (found,) = [one for one in doctor.check_folders() if one.verdict != "ok"]
    assert found.detail.startswith(f"{tmp_path} can be written, but not artefacts in it")


def test_a_folder_that_is_not_there_yet(home: Path):
    found = by_name(check_folders())
    assert found["folder"] == ok("folder", f"{home}, made when first needed")
    assert found["free space"].verdict == "ok"
    assert not home.exists()


def test_a_folder_and_what_it_holds(home: Path):
    (home / "artefacts" / "x").mkdir(parents=True)
    (home / "artefacts" / "x" / "a").write_bytes(bytes(1_500_000))
    (home / "artefacts" / "x" / "b").write_bytes(bytes(1_000_000))
    found = by_name(check_folders())
    assert found["folder"].detail == f"{home}, holds 2.5 MB"
    assert found["locks"] == ok("locks", "work")
    assert found["names"].detail == "capital and small letters differ"
    assert [path.name for path in home.iterdir()] == ["artefacts"]


def test_a_file_where_the_folder_should_be(home: Path):
    home.write_text("x")
    (found,) = check_folders()
    assert (found.verdict, found.detail) == ("problem", f"{home} is a file")
    assert "set CKPTKIT_HOME" in found.hint


def test_a_place_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CKPTKIT_HOME", str(tmp_path / "file" / "home"))
    (found,) = check_folders()
    assert found.verdict == "problem"
    assert "cannot be written and is not there" in found.detail


def test_a_folder_that_this_user_may_not_write(home: Path, tmp_path: Path):
    home.mkdir()
    home.chmod(0o555)
    # Root may write anywhere by its capabilities, so the process gives them up (capset of nothing, Linux).
    drop = (
        "import ctypes, os\n"
        "header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "os.geteuid() or ctypes.CDLL(None).capset(header, nothing)\n"
        "import ckptkit.doctor as doctor\n"
        "doctor.questions = lambda: []"
    )
    code, out, _ = finish(start(["doctor", "--offline", "--json"], home, prelude=drop))
    values = json.loads(out)
    (found,) = (one for one in values["findings"] if one["name"] == "folder")
    assert (found["verdict"], found["detail"]) == ("problem", f"{home} cannot be written")
    assert (code, values["ok"], values["problems"]) == (1, False, 1)


@pytest.mark.parametrize(
    ("free", "verdict"), [(1_999_999_999, "note"), (99_999_999, "problem"), (2_000_000_000, "ok")]
)
def test_little_space(home: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, free))
    found = by_name(check_folders())["free space"]
    assert found.verdict == verdict
    assert bool(found.hint) is (verdict != "ok")


def test_a_file_system_without_locks(home: Path, monkeypatch: pytest.MonkeyPatch):
    from ckptkit.base import locks

    home.mkdir()
    monkeypatch.setattr(locks, "_try", lambda _fd: "no locks")
    found = by_name(check_folders())["locks"]
    assert found.verdict == "note" and "no working locks" in found.detail


def test_a_file_system_that_does_not_tell_capitals(home: Path, monkeypatch: pytest.MonkeyPatch):
    home.mkdir()
    really = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "LETTERS" or really(path))
    assert by_name(check_folders())["names"].detail.startswith("capital and small letters are the same")


def test_counting_ends_in_time(home: Path, monkeypatch: pytest.MonkeyPatch):
    home.mkdir()
    (home / "a").write_bytes(b"12")
    monkeypatch.setattr(doctor, "_COUNTING_SECONDS", -1.0)
    assert by_name(check_folders())["folder"].detail.endswith("holds more than 2 B")


def test_shared_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "shared").mkdir()
    names = [str(tmp_path / name) for name in ("mine", "shared", "missing")]
    monkeypatch.setenv("CKPTKIT_HOME", os.pathsep.join(names))
    found = [(one.name, one.verdict, one.detail) for one in check_folders() if "folder" in one.name]
    assert found == [
        ("folder", "ok", f"{names[0]}, made when first needed"),
        ("shared folder", "ok", f"{names[1]}, holds 0 B"),
        ("shared folder", "note", f"{names[2]} is not there"),
    ]


def test_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "trust" / "ckptkit.lock"
    monkeypatch.setenv("CKPTKIT_TRUST", str(path))
    assert check_lock_file() == [ok("lock file", f"{path}, made with the first fetch")]
    path.parent.mkdir()
    path.write_text('{"ckptkit_lock": 1, "entries": {}}')
    assert check_lock_file() == [ok("lock file", str(path))]
    path.write_text('{"ckptkit_lock": 1, "entries": ')
    (damaged,) = check_lock_file()
    assert damaged.verdict == "problem" and "not a valid lock file" in damaged.detail and damaged.hint


def test_a_lock_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CKPTKIT_TRUST", str(tmp_path / "file" / "ckptkit.lock"))
    (found,) = check_lock_file()
    assert found.verdict == "note" and "set CKPTKIT_TRUST" in found.hint


def test_registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good, bad, more = (tmp_path / name for name in ("good.yaml", "bad.yaml", "more.yaml"))
    entry = (
        "  - id: {}\n    family: moat\n    variant: tiny-moat0\n    display_name: x\n    layout: deeplab2\n"
        "    format: tf\n    sources:\n      - url: https://a.org/m\n"
    )
    good.write_text("entries:\n" + entry.format("mine"))
    bad.write_text("entries:\n  - id: moat0-224\n    colour: red\n")
    more.write_text("entries:\n" + entry.format("mine-too") + entry.format("mine"))
    monkeypatch.setenv("CKPTKIT_REGISTRY", str(good))
    found, registry = check_registries([bad, tmp_path / "missing.yaml", more])
    assert [(one.name, one.verdict) for one in found] == [
        ("registry.yaml", "ok"),
        ("good.yaml", "ok"),
        ("bad.yaml", "problem"),
        ("missing.yaml", "problem"),
        ("more.yaml", "ok"),
    ]
    assert [found[place].detail.endswith(", 1 entry of its own") for place in (1, 4)] == [True, True]
    assert "line 3" in found[2].detail and found[2].hint.startswith("see 'ckptkit registry validate")
    assert registry is not None and {"mine", "mine-too", "moat0-224"} <= set(registry)


def variables_told(**variables: str) -> dict[str, tuple[str, str]]:
    return {one.name: (one.verdict, one.detail) for one in check_environment(variables)}


def test_nothing_set():
    assert variables_told(UNRELATED="1") == {"variables": ("ok", "none of the relevant variables is set")}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://me:hunter2@proxy.example.org:3128", "http://***@proxy.example.org:3128"),
        ("me:hunter2@proxy:3128", "***@proxy:3128"),
        ("http://hunter2@proxy", "http://***@proxy"),
        ("http://a:hunter2@b:hunter2@proxy:1", "http://***@proxy:1"),
        ("http://proxy:3128", "http://proxy:3128"),
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_proxies_without_credentials(name: str, value: str, shown: str):
    assert variables_told(**{name: value}) == {name: ("ok", shown)}


def test_tokens_are_only_set():
    found = variables_told(HF_TOKEN="hf_secret", GITHUB_TOKEN="two words")
    assert found["HF_TOKEN"] == ("ok", "set")
    assert found["GITHUB_TOKEN"] == ("note", "set, but not a valid token; ignored")
    assert variables_told(HF_TOKEN="") == {"variables": ("ok", "none of the relevant variables is set")}


def test_certificates_that_are_not_there(tmp_path: Path):
    missing = str(tmp_path / "missing.pem")
    assert variables_told(REQUESTS_CA_BUNDLE=missing)["REQUESTS_CA_BUNDLE"][0] == "problem"
    assert variables_told(CURL_CA_BUNDLE=str(tmp_path))["CURL_CA_BUNDLE"] == ("ok", str(tmp_path))


def test_of_several_certificates_the_first_counts(tmp_path: Path):
    missing = str(tmp_path / "missing.pem")
    found = variables_told(
        SSL_CERT_FILE=missing, REQUESTS_CA_BUNDLE=str(tmp_path), SSL_CERT_DIR=str(tmp_path)
    )
    assert found["REQUESTS_CA_BUNDLE"] == ("ok", str(tmp_path))
    assert found["SSL_CERT_FILE"] == ("ok", f"{missing}, not used: REQUESTS_CA_BUNDLE comes first")
    assert variables_told(SSL_CERT_DIR=f"{missing}{os.pathsep}{tmp_path}")["SSL_CERT_DIR"][0] == "ok"
    assert variables_told(SSL_CERT_DIR=missing)["SSL_CERT_DIR"][0] == "problem"


@pytest.mark.parametrize("installed", [True, False])
def test_a_socks_proxy_needs_a_package(monkeypatch: pytest.MonkeyPatch, installed: bool):
    find = importlib.util.find_spec
    spec = find("os") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "socks" else find(name))
    (found,) = check_environment({"ALL_PROXY": "socks5h://me:secret@proxy:1080"})
    assert found.detail.startswith("socks5h://***@proxy:1080")
    assert (found.verdict, found.hint) == (("ok", "") if installed else ("problem", "pip install pysocks"))


def test_mirrors():
    rules = "https://a.org=https://me:secret@b.org/x?key=secret https://c.org=file:///srv"
    assert variables_told(CKPTKIT_MIRROR=rules)["CKPTKIT_MIRROR"] == (
        "ok",
        "https://a.org from https://b.org/x; https://c.org from file:///srv",
    )
    verdict, said = variables_told(CKPTKIT_MIRROR="nonsense")["CKPTKIT_MIRROR"]
    assert verdict == "problem" and "nonsense" in said


def test_plain_variables_as_they_are():
    found = variables_told(CKPTKIT_HOME="/srv/cache", CUDA_VISIBLE_DEVICES="0,1", KERAS_BACKEND="torch")
    assert found == {
        "CKPTKIT_HOME": ("ok", "/srv/cache"),
        "KERAS_BACKEND": ("ok", "torch"),
        "CUDA_VISIBLE_DEVICES": ("ok", "0,1"),
    }


def test_a_variable_that_somebody_mistyped():
    found = variables_told(CKPTKIT_HOME="/srv", CKPTKIT_CACHE="/srv", _CKPTKIT_COMPLETE="x")
    assert found["CKPTKIT_CACHE"] == ("note", "not a variable that ckptkit reads")
    assert set(found) == {"CKPTKIT_HOME", "CKPTKIT_CACHE"}


QUICK = Policy(connect_timeout=5.0, read_timeout=5.0)
IMPATIENT = Policy(connect_timeout=5.0, read_timeout=0.4)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def silent_host() -> Iterator[str]:
    """A host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_hosts_of_the_registry():
    hosts = {host.origin: host for host in hosts_of(load_registry())}
    assert {"https://storage.googleapis.com", "https://github.com", GITHUB_API} <= set(hosts)
    files = sum(host.uses.get("file", 0) for host in hosts.values())
    assert files == sum(not s.manual for e in load_registry().values() for s in e.sources)
    assert "file by hand" in hosts["https://pan.baidu.com"].uses
    assert "digests of files" in hosts[GITHUB_API].purpose


def test_mirrors_change_who_is_asked():
    entry = entry_of(
        "https://me:pw@github.com/o/r/releases/download/v1/m.pth", log_url="https://github.com/x.csv"
    )
    rules = parse_mirrors(
        ["https://github.com=file:///srv", "https://me:pw@github.com=http://127.0.0.1:8000"], ""
    )
    assert [(host.origin, host.uses) for host in hosts_of({"a": entry}, rules)] == [
        ("http://127.0.0.1:8000", {"file": 1}),
        ("file://", {"log": 1}),
    ]
    plain = {host.origin for host in hosts_of({"a": entry})}
    assert plain == {"https://github.com", GITHUB_API}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (None, "reachable"),  # 404, for the server has no front page
        (status(403), "reachable"),
        (status(503), "reachable, answers 503 Service Unavailable"),
        (status(500), "reachable, answers 500 Internal Server Error"),
        (redirect("http://example.org/"), "reachable (redirects from http to http"),
        (header("Content-Encoding", "br"), "reachable"),
    ],
)
def test_any_answer_will_do(server: FaultServer, fault, said: str):
    if fault:
        server.fail("/", fault)
    answer = ask_host(server.base, QUICK)
    assert answer.verdict == "ok" and answer.detail.startswith(said)


def test_no_secret_is_sent(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    assert ask_host(server.base).verdict == "ok"
    assert "authorization" not in server.requests[0].headers


def test_nobody_there():
    answer = ask_host(f"http://127.0.0.1:{closed_port()}", QUICK)
    assert (answer.verdict, answer.detail) == ("note", "refused: no server listens there")


def test_a_host_that_says_nothing():
    with silent_host() as origin:
        answer = ask_host(origin, IMPATIENT)
    assert (answer.verdict, answer.detail) == ("note", "timeout: no answer")


def test_a_host_that_hangs_up(server: FaultServer):
    server.fail("/", raw(b""))
    answer = ask_host(server.base, QUICK)
    assert answer.verdict == "note" and answer.detail.startswith("connection failed: ")


def test_a_host_that_speaks_another_language(server: FaultServer):
    server.fail("/", raw(b"220 mail.example.org ESMTP\r\n"))
    answer = ask_host(server.base, QUICK)
    assert answer.verdict == "note" and answer.detail.startswith("connection failed: ")


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch):
    answer = ask_host("http://host.invalid", QUICK)
    assert (answer.verdict, answer.detail) == ("note", "could not resolve its name")


@pytest.fixture
def https_server(tmp_path: Path) -> Iterator[FaultServer]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    pem, certificate = tmp_path / "server.pem", tmp_path / "c.pem"
    made = subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=127.0.0.1",
            ],
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(pem), "-out", str(certificate)),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("this openssl makes no such certificate")
    pem.write_bytes(pem.read_bytes() + certificate.read_bytes())
    with FaultServer(certificate=pem) as running:
        yield running


def test_certificates(https_server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answer = ask_host(https_server.base, QUICK)
    assert answer.verdict == "note"
    assert answer.detail.startswith("TLS failure: ") and "certificate verify failed" in answer.detail
    assert "REQUESTS_CA_BUNDLE" in answer.hint
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "c.pem"))
    assert ask_host(https_server.base, QUICK).detail == "reachable"


def test_certificates_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    answer = ask_host("https://127.0.0.1:9")
    assert answer.verdict == "note"
    assert answer.detail == f"SSL_CERT_FILE names {tmp_path / 'ca.pem'}, which does not exist"


def test_https_asked_of_one_that_has_only_http():
    with proxy(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (address, _):
        answer = ask_host(f"https://{address}", QUICK)
    assert answer.verdict == "note" and answer.detail.startswith("TLS failure: ")


@contextlib.contextmanager
def proxy(reply: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that answers every question so."""
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(4096))
                    connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("code", ["407 Proxy Authentication Required", "403 Forbidden"])
def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch, scheme: str, code: str):
    reply = f"HTTP/1.1 {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    with proxy(reply) as (address, asked):
        monkeypatch.setenv(f"{scheme}_proxy", f"http://me:hunter2@{address}")
        answer = ask_host(f"{scheme}://files.example.org", QUICK)
    assert len(asked) == 1 and b"files.example.org" in asked[0]
    assert "hunter2" not in answer.detail
    if (scheme, code[:3]) == ("http", "403"):  # nothing tells it from an answer of the host itself
        assert answer.verdict == "ok"
    else:
        assert answer.verdict == "note"
        assert answer.detail.startswith("blocked by the proxy: ") and code[:3] in answer.detail


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")
    answer = ask_host("https://files.example.org", QUICK)
    assert answer.verdict == "note" and answer.detail.startswith("blocked by the proxy: ")
    assert "HTTPS_PROXY" in answer.hint


def test_all_hosts_at_once_and_one_that_trickles(server: FaultServer):
    server.fail("/", raw(b"HTTP/1.1 200 OK\r\nX: ", stall=True))
    slow = Policy(connect_timeout=30, read_timeout=30)
    with silent_host() as silent, FaultServer() as other:
        hosts = [Host(origin, {"file": 1}) for origin in (silent, server.base, other.base)]
        steps: list[int] = []
        began = time.monotonic()
        found = check_hosts(hosts, policy=slow, seconds=2.0, advance=steps.append)
        assert time.monotonic() - began < 15
    assert [one.verdict for one in found] == ["note", "note", "ok"]
    assert found[0].detail == "timeout: no answer within 2 s (1 file)"
    assert steps == [1]


def test_problems_only_where_no_files_can_be_had(server: FaultServer):
    away = [Host(f"http://127.0.0.1:{closed_port()}", {"file": 3}), Host("http://host.invalid", {"log": 2})]
    assert [one.verdict for one in check_hosts(away, policy=QUICK)] == ["problem", "note"]
    there = Host(server.base, {"file": 1, "log": 2})
    found = check_hosts([*away, there], policy=QUICK)
    assert [one.verdict for one in found] == ["note", "note", "ok"]
    assert found[2].detail == "reachable (1 file, 2 logs)"


def test_a_host_without_an_answer_in_the_body(server: FaultServer):
    server.serve("/", b"x" * 1000)
    server.fail("/", stall(10))
    assert ask_host(server.base, QUICK).detail == "reachable"


def test_what_is_not_asked():
    found = check_hosts([Host("file://", {"file": 2}), Host("s3://bucket", {"file": 1})])
    assert [(one.verdict, one.detail) for one in found] == [
        ("ok", "on this machine (2 files)"),
        ("ok", "an object store, not asked here (1 file)"),
    ]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts an nvidia-smi of its own first on the path."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(script: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)

    return make


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts a framework of its own first on Python's path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # two bodies of one second and one size look the same

    def make(name: str, body: str) -> None:
        (tmp_path / f"{name}.py").write_text(body)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return make


TORCH = """
class cuda:
    is_available = staticmethod(lambda: {gpus} > 0)
    device_count = staticmethod(lambda: {gpus})
    get_device_name = staticmethod(lambda n: f"Fake GPU {{n}}")
class backends:
    class mps:
        is_available = staticmethod(lambda: False)
class version:
    cuda = {built}
print("a greeting")
"""


def test_no_driver(tool):
    assert driver() == ok("NVIDIA driver", "not installed: no GPU; models run on the processor")


def test_a_driver_with_gpus(tool):
    tool('echo "H200, 143771 MiB, 570.1"\necho "H200, 143771 MiB, 570.1"')
    assert driver().detail == "H200, 143771 MiB, 570.1; H200, 143771 MiB, 570.1"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'could not communicate with the driver' >&2; exit 9", "could not communicate with the driver"),
        ("exit 0", "nvidia-smi: "),
    ],
)
def test_a_driver_that_fails(tool, script: str, said: str):
    tool(script)
    found = driver()
    assert found.verdict == "note" and said in found.detail


def test_a_tool_that_cannot_be_started(tool, tmp_path: Path):
    tool("")
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF and nothing more")
    assert driver().verdict == "note"


def test_what_a_framework_sees(package):
    package("torch", TORCH.format(gpus=2, built="'12.8'"))
    assert framework("torch") == ok("torch", "Fake GPU 0; Fake GPU 1")
    package("torch", TORCH.format(gpus=0, built="'12.8'"))
    assert framework("torch").detail == "no GPU; models run on the processor"
    package("torch", TORCH.format(gpus=0, built=None))
    assert framework("torch").detail.endswith("(built without GPU support)")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "raise ImportError('libx.so.12: cannot open')",
            "cannot be imported: ImportError: libx.so.12",
        ),
        ("import os; os.abort()", "cannot be imported"),
        ("import os; os._exit(3)", "cannot be imported: ended with 3"),
        ("import os; os._exit(0)", "an answer that cannot be read"),
        ("import os; print('[1]', flush=True); os._exit(0)", "an answer that cannot be read"),
    ],
)
def test_frameworks_that_are_broken(package, body: str, said: str):
    package("torch", body)
    found = framework("torch")
    assert found.verdict == "note" and said in found.detail and found.hint


def test_a_framework_that_hangs_is_ended_with_what_it_started(package, tmp_path: Path):
    body = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    package("torch", body)
    began = time.monotonic()
    found = framework("torch", seconds=3.0)
    assert time.monotonic() - began < 30
    assert found.detail == "gave no answer within 3 s"
    status = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    end = time.monotonic() + 10
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "the grandchild lives on"
        time.sleep(0.05)


def test_a_framework_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert framework("torch") is None


def test_a_process_that_says_too_much():
    said = probe([sys.executable, "-c", "print('x' * 3_000_000)"], 30)
    assert said.returncode == 0 and len(said.stdout) == doctor._MOST_OUTPUT


def test_a_framework_that_does_not_see_what_the_driver_sees():
    none = "no GPU; models run on the processor"
    gpu = ok("NVIDIA driver", "H200, 143771 MiB")
    blind, seeing = ok("torch", none), ok("tensorflow", "H200")
    assert [one.verdict for one in compared([gpu, blind, seeing])] == ["ok", "note", "ok"]
    absent = ok("NVIDIA driver", f"not installed: {none}")
    assert compared([absent, blind]) == [absent, blind]


class Terminal(io.StringIO):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


def terminal_told(stream: io.StringIO, **environment: str) -> dict[str, tuple[str, str]]:
    return {one.name: (one.verdict, one.detail) for one in check_terminal(stream, environment)}


def test_processors_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(doctor, "_CONTROL_GROUP", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("500000000\n")
    found = {one.name: one.detail for one in check_machine()}
    assert found["processors"] == "3 of 64"
    assert found["memory"].endswith("500.0 MB granted to this container")
    (tmp_path / "memory.max").write_text("max\n")
    assert "granted" not in {one.name: one.detail for one in check_machine()}["memory"]


@pytest.mark.parametrize(
    ("environment", "colour"),
    [
        ({"TERM": "xterm-256color"}, "colours, TERM=xterm-256color"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "all colours, TERM=xterm"),
        ({"TERM": "dumb"}, "none: TERM is dumb"),
        ({}, "none: TERM is not set"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "none: NO_COLOR is set"),
    ],
)
def test_colours(environment: dict[str, str], colour: str):
    assert terminal_told(Terminal(), **environment)["colour"] == ("ok", colour)


@pytest.mark.parametrize(("columns", "verdict"), [("79", "note"), ("80", "ok")])
def test_width(monkeypatch: pytest.MonkeyPatch, columns: str, verdict: str):
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_told(Terminal(), TERM="xterm")["width"][0] == verdict


@pytest.mark.parametrize(("encoding", "verdict"), [("utf-8", "ok"), ("UTF8", "ok"), ("ascii", "note")])
def test_letters(encoding: str, verdict: str):
    assert terminal_told(Terminal(encoding), TERM="xterm")["letters"][0] == verdict


def test_a_pipe():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert terminal_told(stream) == {  # type: ignore[arg-type]
        "output": ("ok", "no terminal: plain text, no colour"),
        "letters": ("ok", "UTF-8"),
    }
