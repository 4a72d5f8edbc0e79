"""The sha256 that GitHub computed of a release asset when it was uploaded.

The download itself comes without any checksum; GitHub's REST API has it: "Get a release by tag name" answers
with ``assets``, each with a ``name`` and, for files uploaded since June 2025, ``digest``: ``"sha256:<hex>"``
(https://docs.github.com/en/rest/releases/releases#get-a-release-by-tag-name and
https://github.blog/changelog/2025-06-03-releases-now-expose-digests-for-release-assets/). Older assets have
``null`` there.

Whatever goes wrong here only means that nobody said what the bytes should be: it is told, and no error.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from ckptkit.store.credentials import Credentials, is_loopback
from ckptkit.store.integrity import Promise
from ckptkit.store.transport import PassingError, Policy, SourceError

if TYPE_CHECKING:
    import requests

_MAX_ANSWER = 8 << 20
"""Bytes: an asset takes some 2 kB there, and a release has at most 1000."""
_MAX_SECONDS = 30.0
_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 307, 308)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class NoDigestError(Exception):
    """GitHub's API gave no digest; the text says why."""


@dataclass(frozen=True)
class Asset:
    """A file attached to a release."""

    owner: str
    repository: str
    tag: str
    name: str


@dataclass(frozen=True)
class GitHub:
    """Where GitHub is; tests put a server of their own there.

    Parameters
    ----------
    web, api : str
        Beginning of the URLs of releases, and of the REST API.
    credentials : Credentials
        Holds ``GITHUB_TOKEN``, which the API wants for private repositories and for more than 60 questions an
        hour.

    Examples
    --------
    >>> GitHub().asset("https://github.com/o/r/releases/download/v1/m.pth")
    Asset(owner='o', repository='r', tag='v1', name='m.pth')
    """

    web: str = "https://github.com"
    api: str = "https://api.github.com"
    credentials: Credentials = field(default_factory=Credentials)

    def asset(self, url: str) -> Asset | None:
        """Which release asset a URL leads to; None for every other URL."""
        path, _, _ = url.partition("?")
        if not path.startswith(f"{self.web}/"):
            return None
        parts = path[len(self.web) + 1 :].partition("#")[0].split("/")
        if len(parts) < 6 or parts[2:4] != ["releases", "download"]:
            return None
        owner, repository, _, _, *tag, name = map(unquote, parts)
        asset = Asset(owner, repository, "/".join(tag), name)
        return None if {owner, repository, asset.tag, name} & {"", ".", ".."} else asset

    def promise(self, asset: Asset, policy: Policy) -> Promise:
        """Ask the API for the sha256 of an asset.

        Raises
        ------
        NoDigestError
            When it cannot be had: no connection, rate limit, no such release, no digest.
        """
        parts = (asset.owner, asset.repository, asset.tag)
        owner, repository, tag = (quote(part, safe="") for part in parts)
        answer = self._get_json(f"{self.api}/repos/{owner}/{repository}/releases/tags/{tag}", policy)
        assets = answer.get("assets") if isinstance(answer, dict) else None
        for found in assets if isinstance(assets, list) else []:
            if isinstance(found, dict) and found.get("name") == asset.name:
                match = _DIGEST.fullmatch(str(found.get("digest")).lower())
                if not match:
                    raise NoDigestError("the release has the file, but no digest of it")
                return Promise("sha256", match[1], "GitHub's API")
        raise NoDigestError("the release has no file of this name")

    def _get_json(self, url: str, policy: Policy) -> Any:
        import requests
        import urllib3

        from ckptkit.store.wire import mount

        ends = time.monotonic() + _MAX_SECONDS
        try:
            with requests.Session() as session:
                mount(session, policy)
                for _ in range(_MAX_REDIRECTS + 1):
                    with self._get(session, url, policy) as answer:
                        if time.monotonic() > ends:
                            raise NoDigestError(f"no whole answer within {_MAX_SECONDS:.0f} s")
                        if answer.status_code not in _REDIRECTS:
                            _refuse_status(answer)
                            return json.loads(_body(answer, ends))
                        url = _checked(urljoin(url, answer.headers.get("Location", "")), self.api)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise NoDigestError(f"no answer ({type(error).__name__})") from error
        except (SourceError, PassingError) as error:
            raise NoDigestError(str(error)) from error
        except (ValueError, RecursionError) as error:  # not JSON, not a URL, nested beyond all measure
            raise NoDigestError("the answer cannot be read") from error
        raise NoDigestError("redirects in a circle")

    def _get(self, session: requests.Session, url: str, policy: Policy) -> requests.Response:
        from ckptkit.store.http import USER_AGENT

        headers = {
            "User-Agent": USER_AGENT,
            "Accept": "application/vnd.github+json",
            "Accept-Encoding": "identity",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        authorization = self.credentials.authorization(url)

        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            """Add the token; given as ``auth``, so that requests does not look for a password itself."""
            if authorization:
                request.headers["Authorization"] = authorization
            return request

        return session.get(
            url,
            headers=headers,
            auth=sign,
            stream=True,
            allow_redirects=False,
            timeout=(policy.connect_timeout, min(policy.read_timeout, _MAX_SECONDS)),
            proxies={"http": "", "https": ""} if is_loopback(url) else None,
        )


def _checked(target: str, api: str) -> str:
    """Where a redirect leads: a renamed repository's lead to the same host; no other is followed."""
    there, here = urlsplit(target), urlsplit(api)
    if (there.scheme, there.netloc) != (here.scheme, here.netloc):
        raise NoDigestError("redirects to another host, which is not followed")
    return target


def _refuse_status(answer: requests.Response) -> None:
    status = answer.status_code
    if status == 200:
        return
    if status == 429 or (status == 403 and answer.headers.get("X-RateLimit-Remaining") == "0"):
        raise NoDigestError(f"the rate limit is used up ({status}); with GITHUB_TOKEN set it is higher")
    if status == 401:
        raise NoDigestError("refuses GITHUB_TOKEN (401)")
    if status == 404:
        raise NoDigestError("knows no such release (404)")
    raise NoDigestError(f"answered {status}")


def _body(answer: requests.Response, ends: float) -> bytes:
    from ckptkit.store.http import body_of

    body = bytearray()
    for piece in body_of(answer):
        body += piece
        if len(body) > _MAX_ANSWER:
            raise NoDigestError(f"the answer is larger than {_MAX_ANSWER:,} bytes")
        if time.monotonic() > ends:
            raise NoDigestError(f"no whole answer within {_MAX_SECONDS:.0f} s")
    return bytes(body)
