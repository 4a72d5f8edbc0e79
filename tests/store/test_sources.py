"""Mirror rules: what they are, which one wins, what they make of a URL."""

from __future__ import annotations

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.store.sources import Mirror, parse_mirrors, resolve


@pytest.mark.parametrize(
    ("rule", "origin", "target"),
    [
        ("https://a.org=http://127.0.0.1:8000", "https://a.org", "http://127.0.0.1:8000"),
        ("https://a.org/x/=file:///srv/x/", "https://a.org/x/", "file:///srv/x/"),
        ("https://a.org/x?k=v&l=https://b.org/", "https://a.org/x?k=v&l", "https://b.org/"),
        ("https://a.org=https://b.org/?t=1", "https://a.org", "https://b.org/?t=1"),
        (" HTTPS://a.org=https://b.org ", "HTTPS://a.org", "https://b.org"),
    ],
)
def test_rules(rule: str, origin: str, target: str) -> None:
    assert parse_mirrors([rule], "") == (Mirror(origin, target),)


@pytest.mark.parametrize(
    "rule",
    ["", "https://a.org", "=https://b.org", "https://a.org=", "a.org=https://b.org", "https://a.org=/srv",
     "a=b", "https://a.org=ftp://b.org", "https://a .org=https://b.org"],
)  # fmt: skip
def test_what_is_no_rule_is_a_usage_error(rule: str) -> None:
    with pytest.raises(UsageError, match="FROM=TO"):
        parse_mirrors([rule], "")


def test_environment_holds_several_and_comes_after_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "CKPTKIT_MIRROR",
        "https://b.org=https://2.org;https://c.org=https://3.org\n\thttps://d.org=https://4.org ;",
    )
    targets = [mirror.target for mirror in parse_mirrors(["https://a.org=https://1.org"])]
    assert targets == ["https://1.org", "https://2.org", "https://3.org", "https://4.org"]
    monkeypatch.setenv("CKPTKIT_MIRROR", "nonsense")
    with pytest.raises(UsageError, match=r"CKPTKIT_MIRROR 'nonsense'"):
        parse_mirrors([])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], "https://a.org/x/m.pth"),
        (["https://b.org=https://1.org"], "https://a.org/x/m.pth"),
        (["https://a.org=https://1.org"], "https://1.org/x/m.pth"),
        (["https://a.org=https://1.org", "https://a.org/x=https://2.org"], "https://2.org/m.pth"),
        (["https://a.org/x=https://2.org", "https://a.org=https://1.org"], "https://2.org/m.pth"),
        (["https://a.org=https://1.org", "https://a.org=https://2.org"], "https://1.org/x/m.pth"),
        (["https://a.org/=file:///srv/a"], "file:///srv/a/x/m.pth"),
        (["https://a.org=file:///srv/a/"], "file:///srv/a/x/m.pth"),
        (["https://a.org/=file:///srv/a/"], "file:///srv/a/x/m.pth"),
        (["https://a.org/x/m.pth=file:///srv/other.pth"], "file:///srv/other.pth"),
    ],
)
def test_resolve(rules: list[str], expected: str) -> None:
    assert resolve("https://a.org/x/m.pth", parse_mirrors(rules, "")) == expected
