"""Mirror rules: fetch a published URL from somewhere else.

``FROM=TO`` replaces the prefix FROM of a URL with TO. Of several rules that fit, the one with the longest
FROM wins, then the earliest given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ckptkit.base.errors import UsageError
from ckptkit.base.urls import scrubbed

ENVIRONMENT = "CKPTKIT_MIRROR"
_RULE = re.compile(
    r"(?P<origin>(?:https?|file|s3|gs|az|hf)://[^\s]*?)=(?P<target>(?:https?|file|s3|gs|az|hf)://[^\s]*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mirror:
    """One rule: URLs that begin with ``origin`` are fetched from ``target`` instead."""

    origin: str
    target: str

    def rewrite(self, url: str) -> str:
        """Replace the prefix, minding a slash that only one of the two has.

        Examples
        --------
        >>> Mirror("https://a.org/x/", "http://127.0.0.1:8000").rewrite("https://a.org/x/m.pth")
        'http://127.0.0.1:8000/m.pth'
        """
        rest = url[len(self.origin) :]
        target = self.target
        if rest.startswith("/"):
            target = target.removesuffix("/")
        elif self.origin.endswith("/") and not target.endswith("/"):
            target += "/"
        return target + rest


def parse_mirrors(rules: Sequence[str], environment: str | None = None) -> tuple[Mirror, ...]:
    """Read rules, from the command line first and then from ``CKPTKIT_MIRROR``.

    Parameters
    ----------
    rules : sequence of str
        ``FROM=TO`` each.
    environment : str, optional
        Several rules separated by white space or ``;``. The variable itself is read when None.

    Raises
    ------
    UsageError
        When a rule is not ``FROM=TO`` with two URLs of kinds that can be fetched.

    Examples
    --------
    >>> parse_mirrors(["https://a.org=file:///srv/a"], "")
    (Mirror(origin='https://a.org', target='file:///srv/a'),)
    """
    if environment is None:
        environment = os.environ.get(ENVIRONMENT, "")
    given = [(rule, "--mirror") for rule in rules]
    given += [(rule, ENVIRONMENT) for rule in re.split(r"[\s;]+", environment) if rule]
    return tuple(_parse(rule.strip(), where) for rule, where in given)


def _parse(rule: str, where: str) -> Mirror:
    match = _RULE.fullmatch(rule)
    if not match:
        raise UsageError(
            f"{where} {scrubbed(rule)!r} is not FROM=TO with two URLs",
            hint="write it like https://storage.googleapis.com=http://127.0.0.1:8000 "
            "(TO may be http://, https://, file://, s3://, gs://, az:// or hf://)",
        )
    return Mirror(match["origin"], match["target"])


def resolve(url: str, mirrors: Sequence[Mirror]) -> str:
    """URL to fetch from, after the mirror rules.

    Examples
    --------
    >>> rules = parse_mirrors(["https://a.org=https://b.org", "https://a.org/x=file:///srv/x"], "")
    >>> resolve("https://a.org/x/m.pth", rules), resolve("https://a.org/y/m.pth", rules)
    ('file:///srv/x/m.pth', 'https://b.org/y/m.pth')
    """
    fitting = [mirror for mirror in mirrors if url.startswith(mirror.origin)]
    return max(fitting, key=lambda mirror: len(mirror.origin)).rewrite(url) if fitting else url
