"""Paths as users write them, and the folders that ``CKPTKIT_HOME`` names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ckptkit.errors import UsageError

ENVIRONMENT = "CKPTKIT_HOME"


def user_path(text: str | Path) -> Path:
    """A path as a user writes it: ``~`` and ``~name`` are home folders, also where no shell saw them.

    Raises
    ------
    UsageError
        Nobody is called so, or nothing says which folder is the user's.

    Examples
    --------
    >>> user_path("~/m.pth") == Path.home() / "m.pth", user_path("./~")
    (True, PosixPath('~'))
    """
    if not str(text).startswith("~"):
        return Path(text)
    expanded = os.path.expanduser(text)  # noqa: PTH111 (pathlib's takes './~' for '~')
    if expanded == str(text):
        raise UsageError(
            f"{text}: no home folder is known for {Path(text).parts[0]}",
            hint=f"write ./{text} if that is its name",
        )
    return Path(expanded)


def expanded(value: Any) -> Any:
    """Put home folders for ``~`` into a text, a path, or a list of them; all else stays."""
    if isinstance(value, (list, tuple)) and any(isinstance(one, (str, Path)) for one in value):
        return type(value)(expanded(one) for one in value)
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return str(user_path(value)) if isinstance(value, str) else user_path(value)
    return value


def home_folders() -> list[Path]:
    """Return the cache folders, the one that is written to first.

    ``CKPTKIT_HOME`` separates them like ``PATH`` does; without it there is the platform's cache folder. The
    first that can be written is, and it is read before all others, so that what was fetched anew counts. The
    others keep their order. Where none can be written the first stays first, and writing says why it fails.
    """
    given = [name.strip() for name in os.environ.get(ENVIRONMENT, "").split(os.pathsep)]
    folders = list(dict.fromkeys(user_path(name) for name in given if name))
    if not folders:
        import platformdirs

        return [Path(platformdirs.user_cache_dir("ckptkit", appauthor=False))]
    if len(folders) > 1:
        chosen = next((folder for folder in folders if is_writable(folder)), folders[0])
        folders.remove(chosen)
        folders.insert(0, chosen)
    return folders


def is_writable(folder: Path) -> bool:
    """Whether this process may write in a folder, or could make it; asking changes nothing."""
    path = os.path.abspath(folder)  # noqa: PTH100 (pathlib's is slower, and `ckptkit list` asks)
    while not os.path.lexists(path):
        above = os.path.dirname(path)  # noqa: PTH120
        if above == path:
            return False
        path = above
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)  # noqa: PTH112
