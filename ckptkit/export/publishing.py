"""``--push``: an exported folder on its way to the Hugging Face hub.

Token, endpoint and proxies are found by huggingface_hub's own rules (``HF_TOKEN``, ``hf auth login``,
``HF_ENDPOINT``).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptkit._version import __version__
from ckptkit.base.errors import CkptkitError, MissingDependencyError, NetworkError

_LOGIN = "set HF_TOKEN to a token that may write, or run 'hf auth login'"
_MAX_REASON = 200

_REFUSALS = {
    401: ("the hub does not accept the token", _LOGIN),
    403: ("the token may not write there", "take one that may write to this name"),
    404: ("the hub knows no such place, or hides it from this token", "check the name and the token"),
    429: ("the hub asks to wait", "try again later"),
}


def require_hub(*, offline: bool) -> None:
    """Ask for the package and a token before any work is done."""
    if offline:
        raise NetworkError("--push needs the network, which --offline forbids", hint="leave one of them out")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MissingDependencyError("--push", "huggingface_hub") from error
    if not hub.get_token():
        raise NetworkError("no token for the Hugging Face hub", hint=_LOGIN)


def push(
    folder: Path,
    names: Sequence[str],
    repository: str,
    *,
    private: bool = False,
    message: str,
    bars: bool = False,
) -> str:
    """Create the repository where it does not exist, and send the files in one commit.

    Files of the repository that the export has not stay as they are.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    utils: Any = importlib.import_module("huggingface_hub.utils")
    (utils.enable_progress_bars if bars else utils.disable_progress_bars)()
    api = hub.HfApi(library_name="ckptkit", library_version=__version__)
    with _translated(repository, api.endpoint):
        # not private=False, which would make a repository public against an organization's default
        visibility = {"private": True} if private else {}
        api.create_repo(repository, exist_ok=True, **visibility)
        operations = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names
        ]
        commit = api.create_commit(repository, operations, commit_message=message)
    return str(commit.commit_url)


@contextmanager
def _translated(repository: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line.

    It raises its HTTP library's errors (requests, httpx or httpx2, by its version), OSError and ValueError,
    and wraps some in RuntimeError.
    """
    raised: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *_http_errors())
    try:
        yield
    except CkptkitError:
        raise
    except raised as error:
        raise _explained(error, repository, endpoint) from error


def _http_errors() -> tuple[type[Exception], ...]:
    found = []
    for module, name in (("requests", "RequestException"), ("httpx", "HTTPError"), ("httpx2", "HTTPError")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _explained(error: BaseException, repository: str, endpoint: str) -> NetworkError:
    """The hub's own answer, by the first error of the chain that has an answer of the hub."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            passing = status >= 500 or status in {408, 425}
            helps = "try again later" if passing else "check the name, the token and the endpoint"
            reason, hint = _REFUSALS.get(status, (f"the hub answered {status}", helps))
            message = getattr(one, "server_message", None)
            details = f" ({_short(str(message))})" if message else ""
            return NetworkError(f"{repository}: {reason}{details}", hint=hint)
    last = chain[-1]
    reason = _short(str(last)) or type(last).__name__
    return NetworkError(
        f"{repository}: cannot push to {endpoint}: {reason}", hint="check the connection, try again"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 1] + "…"
