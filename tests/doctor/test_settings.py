"""Environment variables: what is told, and what is never shown."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from ckptkit.doctor.settings import examine_settings


def told(**variables: str) -> dict[str, tuple[str, str]]:
    return {one.name: (one.verdict, one.said) for one in examine_settings(variables)}


def test_nothing_set():
    assert told(UNRELATED="1") == {"variables": ("ok", "none is set that matters")}


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
    assert told(**{name: value}) == {name: ("ok", shown)}


def test_tokens_are_only_set():
    found = told(HF_TOKEN="hf_secret", GITHUB_TOKEN="two words")
    assert found["HF_TOKEN"] == ("ok", "set")
    assert found["GITHUB_TOKEN"] == ("note", "set, but no token: it is not used")
    assert told(HF_TOKEN="") == {"variables": ("ok", "none is set that matters")}


def test_certificates_that_are_not_there(tmp_path: Path):
    missing = str(tmp_path / "missing.pem")
    assert told(REQUESTS_CA_BUNDLE=missing)["REQUESTS_CA_BUNDLE"][0] == "problem"
    assert told(CURL_CA_BUNDLE=str(tmp_path))["CURL_CA_BUNDLE"] == ("ok", str(tmp_path))


def test_of_several_certificates_the_first_counts(tmp_path: Path):
    missing = str(tmp_path / "missing.pem")
    found = told(SSL_CERT_FILE=missing, REQUESTS_CA_BUNDLE=str(tmp_path), SSL_CERT_DIR=str(tmp_path))
    assert found["REQUESTS_CA_BUNDLE"] == ("ok", str(tmp_path))
    assert found["SSL_CERT_FILE"] == ("ok", f"{missing}, not used: REQUESTS_CA_BUNDLE comes first")
    assert told(SSL_CERT_DIR=f"{missing}{os.pathsep}{tmp_path}")["SSL_CERT_DIR"][0] == "ok"
    assert told(SSL_CERT_DIR=missing)["SSL_CERT_DIR"][0] == "problem"


@pytest.mark.parametrize("installed", [True, False])
def test_a_socks_proxy_needs_a_package(monkeypatch: pytest.MonkeyPatch, installed: bool):
    find = importlib.util.find_spec
    spec = find("os") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "socks" else find(name))
    (found,) = examine_settings({"ALL_PROXY": "socks5h://me:secret@proxy:1080"})
    assert found.said.startswith("socks5h://***@proxy:1080")
    assert (found.verdict, found.advice) == (("ok", "") if installed else ("problem", "pip install pysocks"))


def test_mirrors():
    rules = "https://a.org=https://me:secret@b.org/x?key=secret https://c.org=file:///srv"
    assert told(CKPTKIT_MIRROR=rules)["CKPTKIT_MIRROR"] == (
        "ok",
        "https://a.org from https://b.org/x; https://c.org from file:///srv",
    )
    verdict, said = told(CKPTKIT_MIRROR="nonsense")["CKPTKIT_MIRROR"]
    assert verdict == "problem" and "nonsense" in said


def test_plain_variables_as_they_are():
    found = told(CKPTKIT_HOME="/srv/cache", CUDA_VISIBLE_DEVICES="0,1", KERAS_BACKEND="torch")
    assert found == {
        "CKPTKIT_HOME": ("ok", "/srv/cache"),
        "KERAS_BACKEND": ("ok", "torch"),
        "CUDA_VISIBLE_DEVICES": ("ok", "0,1"),
    }


def test_a_variable_that_somebody_mistyped():
    found = told(CKPTKIT_HOME="/srv", CKPTKIT_CACHE="/srv", _CKPTKIT_COMPLETE="x")
    assert found["CKPTKIT_CACHE"] == ("note", "ckptkit knows no such variable")
    assert set(found) == {"CKPTKIT_HOME", "CKPTKIT_CACHE"}
