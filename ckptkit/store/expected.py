"""The checksums that servers state of a file, in several dialects.

Google Cloud Storage sends ``x-goog-hash`` (base64 of crc32c and md5), Azure and older servers
``Content-MD5``, Hugging Face ``X-Linked-Etag`` (the sha256 of a large file, on the redirect that leads to
it), and RFC 9530 defines ``Repr-Digest``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from ckptkit.base.checksums import DIGEST_BYTES, ExpectedChecksum
from ckptkit.base.errors import CkptkitError
from ckptkit.base.net import (
    Answer,
    Credentials,
    PassingError,
    Policy,
    Session,
    SourceError,
)

_REPR_DIGEST_NAMES = {"sha-256": "sha256", "md5": "md5", "crc32c": "crc32c"}
_REPR_DIGEST = re.compile(r"(?<![A-Za-z0-9*_.-])([A-Za-z0-9*_.-]+)\s*=\s*:([A-Za-z0-9+/=]*):")


def server_checksums(
    headers: Iterable[tuple[str, str]], *, partial: bool = False
) -> tuple[ExpectedChecksum, ...]:
    """Checksums of the whole file that a response's headers state.

    >>> server_checksums([("X-Goog-Hash", "crc32c=4waSgw==")])
    (ExpectedChecksum(algorithm='crc32c', value='e3069283', origin='x-goog-hash'),)
    """
    found: list[ExpectedChecksum] = []
    for name, value in headers:
        found += [
            ExpectedChecksum(algorithm, digest, name.lower())
            for algorithm, digest in _parse_header(name.lower(), value, partial)
        ]
    return tuple(dict.fromkeys(found))


def redirect_checksums(headers: Iterable[tuple[str, str]]) -> tuple[ExpectedChecksum, ...]:
    """Checksums that a redirect states of the file it leads to (only ``X-Linked-Etag`` speaks of that)."""
    return tuple(p for p in server_checksums(headers) if p.origin == "x-linked-etag")


def _parse_header(name: str, value: str, partial: bool) -> list[tuple[str, str]]:
    if name == "x-goog-hash":
        pairs = (item.strip().partition("=")[::2] for item in value.split(","))
        return _decoded((algorithm.strip().lower(), text) for algorithm, text in pairs)
    if name == "x-ms-blob-content-md5" or (name == "content-md5" and not partial):
        return _decoded([("md5", value)])
    if name == "repr-digest":
        return _decoded(
            (_REPR_DIGEST_NAMES.get(algorithm.lower(), ""), text)
            for algorithm, text in _REPR_DIGEST.findall(value)
        )
    if name == "x-linked-etag":
        digest = value.strip().removeprefix("W/").strip('"').lower()
        return [("sha256", digest)] if re.fullmatch(r"[0-9a-f]{64}", digest) else []
    return []


def _decoded(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Base64 to hex, leaving out what is not a checksum of a known kind."""
    result = []
    for algorithm, text in pairs:
        try:
            digest = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(digest) == DIGEST_BYTES.get(algorithm):
            result.append((algorithm, digest.hex()))
    return result


# -- the sha256 that GitHub computed of a release asset ------------------------------------------------------
#
# The download itself comes without any checksum; GitHub's REST API has one: "Get a release by tag name"
# answers with ``assets``, each with a ``name`` and, for files uploaded since June 2025, ``digest``:
# ``"sha256:<hex>"`` (https://docs.github.com/en/rest/releases/releases#get-a-release-by-tag-name and
# https://github.blog/changelog/2025-06-03-releases-now-expose-digests-for-release-assets/). Older assets have
# ``null`` there. Whatever goes wrong here only means that no digest is known: it is a note,
# and no error.

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

    >>> GitHub().asset("https://github.com/o/r/releases/download/v1/m.pth")
    Asset(owner='o', repository='r', tag='v1', name='m.pth')
    """

    web: str = "https://github.com"  # beginning of the URLs of releases, and of the REST API
    api: str = "https://api.github.com"
    # Holds ``GITHUB_TOKEN``, which the API wants for private repositories and for more than 60 questions an
    # hour
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

    def expected(self, asset: Asset, policy: Policy) -> ExpectedChecksum:
        """Ask the API for the sha256 of an asset."""
        parts = (asset.owner, asset.repository, asset.tag)
        owner, repository, tag = (quote(part, safe="") for part in parts)
        answer = self._get_json(f"{self.api}/repos/{owner}/{repository}/releases/tags/{tag}", policy)
        assets = answer.get("assets") if isinstance(answer, dict) else None
        for found in assets if isinstance(assets, list) else []:
            if isinstance(found, dict) and found.get("name") == asset.name:
                match = _DIGEST.fullmatch(str(found.get("digest")).lower())
                if not match:
                    raise NoDigestError("the release has the file, but no digest of it")
                return ExpectedChecksum("sha256", match[1], "GitHub's API")
        raise NoDigestError("the release has no file of this name")

    def _get_json(self, url: str, policy: Policy) -> Any:
        ends = time.monotonic() + _MAX_SECONDS
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        patience = replace(policy, read_timeout=min(policy.read_timeout, _MAX_SECONDS))
        try:
            with contextlib.closing(Session(patience)) as session:
                for _ in range(_MAX_REDIRECTS + 1):
                    answer = session.send(url, headers, self.credentials.authorization(url))
                    with answer.raw:
                        if time.monotonic() > ends:
                            raise NoDigestError(f"no complete answer within {_MAX_SECONDS:.0f} s")
                        if answer.status not in _REDIRECTS:
                            _refuse_status(answer)
                            return json.loads(_body(answer, ends))
                        url = _checked(urljoin(url, answer.headers.get("Location", "")), self.api)
        except (SourceError, PassingError, CkptkitError, OSError) as error:
            raise NoDigestError(str(error)) from error
        except (ValueError, RecursionError) as error:  # not JSON, not a URL, nested beyond all measure
            raise NoDigestError("the answer cannot be read") from error
        raise NoDigestError("redirect loop")


def _checked(target: str, api: str) -> str:
    """Where a redirect leads: a renamed repository's lead to the same host; no other is followed."""
    there, here = urlsplit(target), urlsplit(api)
    if (there.scheme, there.netloc) != (here.scheme, here.netloc):
        raise NoDigestError("redirects to another host, which is not followed")
    return target


def _refuse_status(answer: Answer) -> None:
    status = answer.status
    if status == 200:
        return
    if status == 429 or (status == 403 and answer.headers.get("X-RateLimit-Remaining") == "0"):
        raise NoDigestError(f"the rate limit is used up ({status}); with GITHUB_TOKEN set it is higher")
    if status == 401:
        raise NoDigestError("refuses GITHUB_TOKEN (401)")
    if status == 404:
        raise NoDigestError("knows no such release (404)")
    raise NoDigestError(f"answered {status}")


def _body(answer: Answer, ends: float) -> bytes:
    body = bytearray()
    for piece in answer.pieces(1 << 16):
        body += piece
        if len(body) > _MAX_ANSWER:
            raise NoDigestError(f"the answer is larger than {_MAX_ANSWER:,} bytes")
        if time.monotonic() > ends:
            raise NoDigestError(f"no complete answer within {_MAX_SECONDS:.0f} s")
    return bytes(body)
