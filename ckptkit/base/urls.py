"""URLs without what only their host may see: logins, and whatever in the query may be a token.

What is stored and shown is `public_url`; only a request is made to the `full_url`. `scrubbed` takes the same
out of text that others have put together, such as the errors of a library.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_HARMLESS = frozenset(
    {"alt", "dl", "download", "export", "ext", "file", "filename", "format", "fmt", "generation", "id"}
    | {"inline", "lang", "name", "page", "path", "raw", "ref", "rev", "revision", "size", "type", "v", "ver"}
    | {"version", "versionid"}
)
"""Names of a query's parameters that tell which file is meant; any other may carry a token."""
_SHARED_FOLDER = "//pan.baidu.com/"
"""Links to folders of this host end in the code that opens them, ``?pwd=``, and are published so."""
_PARAMETER = re.compile(
    r"([?&]|[#;](?=\w{0,20}(?:token|sig|key|secret)))([^\s=&?#'\"<>]{1,80})=([^\s&#'\"<>)\],]*)"
)
_MATRIX = re.compile(r";([^/;=]{1,80})=[^/;]*")
_SEPARATOR = re.compile("%26|%3B|;", re.IGNORECASE)
_LOGIN = re.compile(
    r"""(?<=://)(?:
        [^\s/?#'"<>]*@                                                # me:secret@
      | [^\s/?#@:'"<>\[]{1,99}:(?!\d+(?:[^\w@]|$)|$)[^\s'"<>@]{0,99}@    # me:se/cret@, not encoded
      | [^\s/?#@:'"<>\[]+:(?!\d+(?:[^\w@]|$)|$)[^\s/?#'"<>)\],]+       # me:sec, where the rest was cut off
    )""",
    re.VERBOSE,
)
_BARE_LOGIN = re.compile(r"(\bhttps?:/?)[^\s/:@'\"]{1,100}:[^\s/:@'\"]{1,200}@", re.IGNORECASE)
"""me:secret@host, of a URL without one of its slashes."""
_ENCODED_LOGIN = re.compile(
    r"(%(?:25){0,3}3a(?:%(?:25){0,3}2f){2})[^\s/?#&'\"]{1,300}?%(?:25){0,3}40", re.IGNORECASE
)
_HEADER = re.compile(r"(\bBearer |\bAuthorization['\"]?: ?b?['\"]?(?:Basic|token) )[^\s'\"]+")


class Url(str):
    """A URL that reads as its `public_url`, and keeps the whole for who makes the request.

    >>> url = Url("https://me:secret@a.org/m.pth?download=1&token=x")
    >>> print(url, full_url(url))
    https://a.org/m.pth?download=1 https://me:secret@a.org/m.pth?download=1&token=x
    """

    __slots__ = ("full",)
    full: str

    def __new__(cls, url: str) -> Url:
        """Take the secrets out."""
        self = super().__new__(cls, public_url(url))
        self.full = full_url(url)
        return self

    def __getnewargs__(self) -> tuple[str]:
        return (self.full,)


def full_url(url: str) -> str:
    """The URL to request: the whole of a `Url`, any other unchanged."""
    return url.full if isinstance(url, Url) else url


def public_url(url: str) -> str:
    """URL without user name, password, and the parameters of its query that may be secret.

    >>> public_url("https://me:p%40ss@a.org:8443/m.pth?X-Amz-Signature=1&id=7")
    'https://a.org:8443/m.pth?id=7'
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return _LOGIN.sub("", url).partition("?")[0]
    if "@" in url and "@" not in parts.netloc and (whole := _LOGIN.sub("", url)) != url:
        return public_url(whole)  # a password with a sign that ends the host
    shared = _SHARED_FOLDER in f"//{parts.netloc}/"
    query = "&".join(
        one for one in parts.query.split("&") if is_harmless(one) or (shared and one[:4] == "pwd=")
    )
    fragment = "" if "=" in parts.fragment or "@" in parts.fragment else parts.fragment
    path = _MATRIX.sub(_harmless, parts.path) if ";" in parts.path else parts.path
    kept = (path, query, fragment) == (parts.path, parts.query, parts.fragment)
    if kept and "@" not in parts.netloc:
        return str(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, query, fragment))


def _harmless(found: re.Match[str]) -> str:
    return found[0] if found[1].lower() in _HARMLESS else ""


def is_harmless(parameter: str) -> bool:
    """Whether a parameter of a query says which file is meant, and nothing else."""
    name, _, value = parameter.partition("=")
    return name.lower() in _HARMLESS and len(value) <= 200 and not _SEPARATOR.search(value)


def scrubbed(text: str) -> str:
    """Text without logins and tokens in the URLs that it quotes.

    >>> scrubbed("refused: http://me:secret@a.org/m?token=x&id=7 (url: /m?sig=y)")
    'refused: http://a.org/m?token=…&id=7 (url: /m?sig=…)'
    """
    if "@" in text and "http" in text:
        text = _BARE_LOGIN.sub(r"\1", text)
    if "://" in text:
        text = _LOGIN.sub("", text)
    if "%" in text:
        text = _ENCODED_LOGIN.sub(r"\1", text)
    if "Bearer " in text or "Authorization" in text:
        text = _HEADER.sub(r"\1…", text)
    if "=" not in text:
        return text
    return _PARAMETER.sub(_scrubbed_parameter, text)


def _scrubbed_parameter(found: re.Match[str]) -> str:
    before = found.string[max(0, found.start() - 100) : found.start()]
    shared = (
        found[2] == "pwd" and _SHARED_FOLDER in before and not re.search(r"\s", before.rpartition("//")[2])
    )
    kept = shared or is_harmless(f"{found[2]}={found[3]}")
    return found[0] if kept else f"{found[1]}{found[2]}=…"


_HUB = re.compile(
    r"(?P<repository>hf://(?:(?:datasets|spaces)/)?[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?=/)"
    r"|(?P<web>https://huggingface\.co/(?:[^/]+/){2,3}?(?:resolve|blob|raw))/(?P<of_web>[^/]+)(?=/)"
)


def at_revision(url: str, revision: str) -> str | None:
    """The URL of a file on the Hugging Face hub at a revision of its repository; None of any other URL.

    >>> at_revision("hf://org/name/model.safetensors", "8452cdd")
    'hf://org/name@8452cdd/model.safetensors'
    >>> at_revision("https://huggingface.co/org/name/resolve/main/model.safetensors", "8452cdd")
    'https://huggingface.co/org/name/resolve/8452cdd/model.safetensors'
    >>> at_revision("https://example.org/model.safetensors", "8452cdd") is None
    True
    """
    found = _HUB.match(url)
    if found is None:
        return None
    pinned = f"{found['repository']}@{revision}" if found["repository"] else f"{found['web']}/{revision}"
    return pinned + url[found.end() :]


def hub_place(url: str) -> tuple[str, str] | None:
    """Repository and revision on the Hugging Face hub that a file's URL names; None of any other URL.

    >>> hub_place("hf://org/name/m.pth"), hub_place("https://example.org/m.pth")
    (('hf://org/name', 'main'), None)
    >>> hub_place("https://huggingface.co/datasets/org/name/resolve/v1/m.pth")
    ('hf://datasets/org/name', 'v1')
    """
    found = _HUB.match(url)
    if found is None:
        return None
    repository = found["repository"] or f"hf://{'/'.join(found['web'].split('/')[3:-1])}"
    return repository, found["revision"] or found["of_web"] or "main"


_COMMIT = re.compile("[0-9a-f]{40}")


def is_commit(revision: str) -> bool:
    """Whether a revision is a whole commit, which never means another one."""
    return _COMMIT.fullmatch(revision) is not None


_FAR = re.compile("(?:https?|s3|gs|az|hf)://", re.IGNORECASE)


def is_far(name: object) -> bool:
    """Whether a name is the URL of a file on a server.

    >>> is_far("https://a.org/m.pth"), is_far("hf://org/name"), is_far("m.pth"), is_far("file:///m.pth")
    (True, True, False, False)
    """
    return isinstance(name, str) and _FAR.match(name) is not None


def is_local(url: str) -> bool:
    """Whether a URL needs no network."""
    return urlsplit(url).scheme.lower() == "file"


def without_secrets(url: str) -> str:
    """URL without user name, password and query: fit for a record, a message or a log.

    >>> without_secrets("https://me:secret@a.org:8443/m.pth?X-Amz-Signature=1")
    'https://a.org:8443/m.pth'
    """
    return public_url(url).partition("#")[0].partition("?")[0]


def host_of(url: str) -> str:
    """Name of the place a URL points to, for messages.

    >>> host_of("https://me:secret@a.org:8443/m.pth"), host_of("file:///srv/m.pth")
    ('a.org:8443', 'file:///srv/m.pth')
    """
    return without_secrets(url) if is_local(url) else urlsplit(url).netloc.rpartition("@")[2]
