"""Paths as users write them, and the folders that ``CKPTKIT_HOME`` names."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckptkit.base.errors import UsageError
from ckptkit.base.text import counted

ENVIRONMENT = "CKPTKIT_HOME"


def user_path(text: str | Path) -> Path:
    """A path as a user writes it: ``~`` and ``~name`` are home folders, also where no shell saw them.

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


_MOST_PARTS = 16
"""Between separators, of one path."""


def listed_paths(variable: str) -> list[Path]:
    """Paths that an environment variable lists as ``PATH`` does, each once.

    A separator inside a path is recognised by what is there: ``/data/run:1/cache`` is one path where
    ``/data/run:1`` exists, or where what follows the separator is relative (``/data/new:1``).
    """
    parts = os.environ.get(variable, "").split(os.pathsep)
    paths = []
    while parts:
        count = next((n for n in range(min(len(parts), _MOST_PARTS), 1, -1) if _is_one(parts[:n])), 1)
        paths.append(os.pathsep.join(parts[:count]).strip())
        del parts[:count]
    return list(dict.fromkeys(user_path(path) for path in paths if path))


def _is_one(parts: list[str]) -> bool:
    """Whether parts between separators make one path together."""
    if not all(part.strip() for part in parts):
        return False
    if os.path.isabs(parts[0].strip()) and not any(part.startswith((os.sep, "~", ".")) for part in parts[1:]):  # noqa: PTH117
        return True
    *before, last = parts
    named = os.pathsep.join([*before, last.partition(os.sep)[0]]).strip()  # up to the name with the last one
    return os.path.lexists(os.path.expanduser(named))  # noqa: PTH111 (never raises)


_DEEPEST = 250
NOWHERE = Path(os.devnull) / "ckptkit"
"""The cache folder of a user who has no home folder: nothing is there, and nothing can be written."""


def platform_folder(kind: str) -> Path:
    """Return the platform's ``cache`` or ``config`` folder for ckptkit; `NOWHERE` where no home is known."""
    import platformdirs

    ask = platformdirs.user_cache_dir if kind == "cache" else platformdirs.user_config_dir
    try:
        folder = Path(ask("ckptkit", appauthor=False))
    except RuntimeError:  # platformdirs 4.4 and newer; older ones give back "~/.cache"
        return NOWHERE
    return folder if folder.is_absolute() else NOWHERE


def home_folders() -> list[Path]:
    """Return the cache folders, the one that is written to first.

    ``CKPTKIT_HOME`` lists them (`listed_paths`); without it there is the platform's cache folder. The
    first that can be written is, and it is read before all others, so that the latest fetch counts. The
    others keep their order. Where none can be written the first stays first, and writing says why it fails.
    """
    given = listed_paths(ENVIRONMENT)
    folders = given or [platform_folder("cache")]
    if (
        depth := max(len(folder.parts) for folder in folders)
    ) > _DEEPEST:  # pathlib makes folders by recursion
        raise UsageError(
            f"{ENVIRONMENT if given else 'HOME'} names a path {counted(depth, 'folder')} deep",
            hint=f"set {ENVIRONMENT} to a shorter path",
        )
    if len(folders) > 1:
        chosen = next((folder for folder in folders if is_writable(folder)), folders[0])
        folders.remove(chosen)
        folders.insert(0, chosen)
    return folders


_IN_THE_CACHE = {"MPLCONFIGDIR": "matplotlib", "TORCHINDUCTOR_CACHE_DIR": "torchinductor"}
"""Variable of a framework → its folder in ckptkit's cache."""


def keep_home_clean() -> None:
    """Have frameworks, imported here or in a child, write nothing of their own outside the cache.

    Keras would write its configuration (one that is there is read), matplotlib its list of fonts, and PyTorch
    what it compiles, into the folder for temporary files. What the user has set counts.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 (never raises; "~" where no home is known)
    if home == "~" or not os.path.exists(os.path.join(home, ".keras", "keras.json")):  # noqa: PTH110, PTH118
        os.environ.setdefault("KERAS_HOME", os.path.join(os.devnull, "keras"))  # noqa: PTH118 (cannot be made)
    with suppress(UsageError):  # the command says it
        cache = home_folders()[0]
        for variable, name in _IN_THE_CACHE.items():
            if is_writable(cache / name):
                os.environ.setdefault(variable, str(cache / name))


def is_writable(folder: Path) -> bool:
    """Whether this process may write in a folder, or could make it; asking changes nothing."""
    path = os.path.abspath(folder)  # noqa: PTH100 (pathlib's is slower, and `ckptkit list` asks)
    while not os.path.lexists(path):
        above = os.path.dirname(path)  # noqa: PTH120
        if above == path:
            return False
        path = above
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)  # noqa: PTH112
