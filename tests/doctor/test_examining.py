"""The whole examination, with hosts and devices of the test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ckptkit.doctor import Examination, Finding, devices, examine, folders, network
from ckptkit.registry import Registry
from tests.support.entries import entry_of
from tests.support.http_server import FaultServer


@pytest.fixture(autouse=True)
def _no_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing two frameworks takes long; tests/doctor/test_devices.py asks them."""
    monkeypatch.setattr(devices, "questions", lambda: [devices.driver])
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


SECTIONS = [
    *("versions", "packages", "cache", "registry", "environment"),
    *("network", "devices", "machine", "terminal"),
]


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch):
    def never(*_arguments: object, **_options: object) -> list[Finding]:
        raise AssertionError("asked")

    monkeypatch.setattr(network, "examine_hosts", never)
    found = examine(offline=True)
    assert list(found.sections) == SECTIONS
    assert [one.said for one in found.findings if one.section == "network"] == [
        "not asked, for --offline is given"
    ]
    assert found.ok
    json.dumps(found.to_json(), allow_nan=False)


def test_hosts_are_asked_through_the_mirrors(server: FaultServer, monkeypatch: pytest.MonkeyPatch):
    few = Registry([entry_of("https://a.org/m.pth", log_url="https://b.org/x.csv")])
    monkeypatch.setattr(folders, "examine_registries", lambda _overlays: ([], few))
    found = examine(mirrors=[f"https://a.org={server.base}", f"https://b.org={server.base}"])
    asked = {one.name: one for one in found.findings if one.section == "network"}
    assert {name: (one.verdict, one.said) for name, one in asked.items()} == {
        f"127.0.0.1:{server.port}": ("ok", "reachable (1 file, 1 log)")
    }
    assert [request.path for request in server.requests] == ["/"]


def test_a_wrong_mirror_rule_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CKPTKIT_MIRROR", "nonsense")
    found = examine(offline=True)
    assert [(one.section, one.name) for one in found.of("problem")] == [("environment", "CKPTKIT_MIRROR")]
    found = examine(offline=True, mirrors=["more nonsense"])
    assert [one.name for one in found.of("problem")] == ["CKPTKIT_MIRROR", "mirrors"]


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch):
    def fails() -> Finding:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(devices, "questions", lambda: [fails])
    steps: list[int] = []
    found = examine(offline=True, advance=steps.append)
    assert "cannot be started: Resource temporarily unavailable" in [
        one.said for one in found.findings if one.section == "devices"
    ]
    assert steps == [1]


def test_verdicts():
    findings = tuple(Finding("a", verdict, verdict, "x") for verdict in ("ok", "note", "problem"))
    assert Examination(findings[:2]).ok and not Examination(findings).ok
    values = Examination(findings).to_json()
    assert (values["ok"], values["notes"], values["problems"], len(values["findings"])) == (False, 1, 1, 3)
