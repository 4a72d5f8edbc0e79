"""Errors, each with a hint at the next step.

Each message is one line: the real file or id, what was found, and (as ``hint``) the next step.
The command line maps each class to one exit code (``ckptkit/cli/output.py``); nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

from ckptkit.base.packages import install_command, is_installed
from ckptkit.base.text import counted, escaped
from ckptkit.base.urls import scrubbed

_MAX_REASON = 1000
_LONGEST_HINT = 600


NAMED_REGISTRIES: ContextVar[tuple[str, ...]] = ContextVar("NAMED_REGISTRIES", default=())
"""The files that ``--registry`` names: a command in a hint needs them too."""


def command(*words: object) -> str:
    """A command for a hint, quoted so that it works when typed; it ends the hint.

    >>> command("verify", "my model.pth")
    "Run: ckptkit verify 'my model.pth'"
    """
    registries = [word for file in NAMED_REGISTRIES.get() for word in ("--registry", file)]
    return " ".join(["Run:", *(escaped(str(word), "shell") for word in ("ckptkit", *words, *registries))])


WHOLE_LISTS: ContextVar[bool] = ContextVar("WHOLE_LISTS", default=False)
"""Whether messages name everything, as ``--verbose`` promises."""


def listed(names: Iterable[str], shown: int = 8) -> str:
    """The first of some names, and how many more there are; all of them with ``--verbose``.

    >>> listed(["epoch", "arch", "optimizer"], 2)
    'epoch, arch and 1 more'
    """
    every = list(names)
    if WHOLE_LISTS.get() or len(every) <= shown:
        return ", ".join(every)
    return f"{', '.join(every[:shown])} and {len(every) - shown:,} more"


def shown_faults(faults: Iterable[str]) -> list[str]:
    """As many faults as a message has room for, and how many more there are.

    >>> shown_faults(["line 1: no id", "line 3: " + "x" * 2000, "line 4: no id"])
    ['line 1: no id', 'and 2 more, which --verbose lists']
    """
    every = list(faults)
    room, fitting = _MAX_REASON - 200, 0
    while fitting < len(every) and (room := room - len(every[fitting]) - 2) > 0:
        fitting += 1
    if WHOLE_LISTS.get() or fitting == len(every) or len(every) == 1:
        return every
    shown = every[: max(1, fitting)]
    return [*shown, f"and {len(every) - len(shown):,} more, which --verbose lists"]


def _in_a_line(text: str, most: int = _MAX_REASON + 200) -> str:
    """A message or hint, escaped, without secrets; its middle is left out where it quotes at length."""
    text = scrubbed(text)
    if WHOLE_LISTS.get():
        return escaped(text)
    return _without_middle(escaped(_without_middle(text, most)), most)


def _without_middle(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 3 :]}"


class CkptkitError(Exception):
    r"""Anything ckptkit refuses or fails to do.

    >>> str(CkptkitError("a.index: empty file", hint="download it again"))
    'a.index: empty file; download it again'
    >>> str(CkptkitError("tiny-moat0-256 is not in the cache", hint=command("fetch", "tiny-moat0-256")))
    'tiny-moat0-256 is not in the cache. Run: ckptkit fetch tiny-moat0-256'
    >>> print(CkptkitError("no tensor called a\x1b[2Jb"))
    no tensor called a\x1b[2Jb
    """

    def __init__(self, verdict: str, *, details: Iterable[str] = (), hint: str | None = None) -> None:
        self.verdict = _in_a_line(verdict)
        self.details = tuple(map(_in_a_line, details))  # each a line of its own below the verdict
        self.hint = hint and _in_a_line(hint, _LONGEST_HINT)
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """Verdict and details in one line."""
        return ": ".join(filter(None, (self.verdict, "; ".join(self.details))))

    def lines(self) -> list[str]:
        """The verdict, several details a line each, and what to do next; else all of it in one line."""
        several = len(self.details) > 1
        return [self.verdict, *self.details, *filter(None, [self.hint])] if several else [str(self)]

    def reword(self, way: Callable[[str], str]) -> None:
        """Say the same in other words: those of the command line are not Python's."""
        self.verdict = _in_a_line(way(self.verdict))
        self.details = tuple(_in_a_line(way(one)) for one in self.details)
        self.hint = _in_a_line(way(self.hint), _LONGEST_HINT) if self.hint else None
        self.args = (self.message,)

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        return f"{self.message}{'. ' if self.hint[0].isupper() else '; '}{self.hint}"


class UsageError(CkptkitError):
    """The request itself makes no sense, or would overwrite something without ``--force``."""


def one_of(what: str, text: str, names: Sequence[str], aliases: Mapping[str, str] | None = None) -> str:
    """Resolve a name that a user typed, or an alias of it.

    >>> one_of("framework", "PyTorch", ("torch", "keras"), {"pytorch": "torch"})
    'torch'
    """
    lower = text.lower()
    name = (aliases or {}).get(lower, lower)
    if name in names:
        return name
    import difflib

    close = difflib.get_close_matches(lower, [*names, *(aliases or {})], 1)
    meant = f"did you mean {(aliases or {}).get(close[0], close[0])}? " if close else ""
    raise UsageError(f"unknown {what} {text!r}", hint=meant + choose_from(names))


def choose_from(names: Iterable[str]) -> str:
    """The hint that lists what an option takes.

    >>> choose_from(["torch", "keras"])
    'choose from torch, keras'
    """
    return f"choose from {', '.join(names)}"


class NotFoundError(CkptkitError):
    """No such entry, file or tensor."""


class NetworkError(CkptkitError):
    """Every source failed, or the network is needed and ``--offline`` forbids it."""


class FormatError(CkptkitError):
    """A damaged, hostile or unsupported file.

    The reason may quote the file: it is cut to 1000 characters. One that begins with "is" or "holds" makes a
    sentence with the path.

    >>> str(FormatError("m.index", "bad table magic", offset=40))
    'm.index: at byte 40: bad table magic'
    >>> str(FormatError("m.onnx", "is an ONNX graph"))
    'm.onnx is an ONNX graph'
    """

    def __init__(
        self,
        path: str | Path,
        reason: str,
        *,
        offset: int | None = None,
        details: Iterable[str] = (),
        hint: str | None = None,
    ) -> None:
        self.path = path
        self.reason = reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 1] + "…"
        self.offset = offset
        if offset is not None:
            where = f"{path}: at byte {offset}: "
        else:
            where = f"{path} " if reason.startswith(("is ", "holds ")) else f"{path}: "
        super().__init__(where + self.reason, details=details, hint=hint)


class IntegrityError(CkptkitError):
    """The bytes are not the ones that were promised: checksum, size or identity differ."""


class RegistryError(CkptkitError):
    """A registry file breaks its schema."""

    def __init__(self, path: str | Path, faults: list[str]) -> None:
        self.path = path
        self.faults = faults  # each as "line N: what"
        super().__init__(
            f"{path}: {counted(len(faults), 'fault')}",
            details=shown_faults(faults),
            hint=f"see 'ckptkit registry validate {path}' and 'ckptkit registry schema'",
        )


class ConversionError(CkptkitError):
    """The tensors of a file do not fit the layout they should have."""


class UnknownModelError(ConversionError):
    """The tensors of a file are of no family known here."""


class StorageError(CkptkitError):
    """Writing or reading failed: disk full, read-only, not permitted."""


class MissingDependencyError(CkptkitError):
    """Optional packages are needed.

    >>> str(MissingDependencyError("the PyTorch forward pass", "torch"))
    "the PyTorch forward pass needs torch; pip install 'torch>=2.6,<2.14'"
    """

    def __init__(self, purpose: str, *packages: str) -> None:
        super().__init__(f"{purpose} needs {' and '.join(packages)}", hint=install_command(*packages))


def require_installed(needed: Sequence[str], purpose: str) -> None:
    """Refuse a work for which packages are missing, naming all of them; none is imported."""
    missing = [package for package in needed if not is_installed(package)]
    if missing:
        raise MissingDependencyError(purpose, *missing)
