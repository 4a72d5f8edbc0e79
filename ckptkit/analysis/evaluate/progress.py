"""What is known of each image so far, and the file that keeps it over an interruption."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from ckptkit.base.errors import CkptkitError, StorageError, UsageError, storage_error
from ckptkit.base.files import StagedFile, open_regular, read_regular, refuse_streams
from ckptkit.base.tensors import Array

SAVE_EVERY_S = 5.0
_FORMAT = 1
_MAX_BYTES = 64 << 20
_HEAD_BYTES = 4096
_FLAGS = ("done", "top1", "top5")
_PART = ".rank"


@dataclass
class Progress:
    """Which images of a set are done, and which of them were hit."""

    done: Array  # one bool for each image
    top1: Array
    top5: Array
    bad: dict[int, str] = field(default_factory=dict)  # images that cannot be decoded, and why

    @classmethod
    def of(cls, images: int) -> Progress:
        """Nothing done yet."""
        return cls(numpy.zeros(images, bool), numpy.zeros(images, bool), numpy.zeros(images, bool))

    def note(self, positions: list[int], ranks: Array, bad: Mapping[int, str]) -> None:
        """Take the result of a batch: ``ranks`` says how many classes came before each image's own."""
        self.done[positions] = True
        self.top1[positions] = ranks < 1
        self.top5[positions] = ranks < 5
        self.done[list(bad)] = True
        self.bad.update(bad)

    def merge(self, other: Progress) -> None:
        """Add what somebody else knows."""
        for flag in _FLAGS:
            getattr(self, flag)[:] |= getattr(other, flag)
        self.bad.update(other.bad)

    @property
    def good(self) -> int:
        """Images done that could be decoded."""
        return int(self.done.sum()) - len(self.bad)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        packed = {flag: numpy.packbits(getattr(self, flag)).tobytes() for flag in _FLAGS}
        return {
            "images": len(self.done),
            **{flag: base64.b64encode(bits).decode() for flag, bits in packed.items()},
            "bad": {str(position): reason for position, reason in sorted(self.bad.items())},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], images: int) -> Progress | None:
        """Read what `to_json` gave; None where it is not for so many images, or damaged."""
        try:
            done, top1, top5 = (_unpacked(values[flag], images) for flag in _FLAGS)
            bad = {int(position): str(reason) for position, reason in values["bad"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
            return None
        found = cls(done, top1, top5, bad)
        sound = (
            values.get("images") == images
            and all(0 <= position < images and found.done[position] for position in bad)
            and not (found.top1 & ~found.top5).any()
            and not (found.top5 & ~found.done).any()
            and not any(found.top5[position] for position in bad)
        )
        return found if sound else None


def _unpacked(text: str, images: int) -> Array:
    bits = numpy.frombuffer(base64.b64decode(text, validate=True), numpy.uint8)
    if len(bits) != (images + 7) // 8:
        raise ValueError("another number of images")
    return numpy.unpackbits(bits, count=images).astype(bool)


class StateFile:
    """Where progress is kept between two runs. Where the disk refuses, it is not, and `refused` says why."""

    def __init__(self, path: Path, identity: Mapping[str, str], images: int, part: int | None = None) -> None:
        self.path = path
        self._identity = dict(identity)
        self._images = images
        self._own = path if part is None else path.with_name(f"{path.name}{_PART}{part}")
        self._saved = time.monotonic()
        self.refused: CkptkitError | None = None

    def refuse_other_file(self) -> None:
        """Refuse a path at which something else lies: it would be replaced, and removed in the end."""
        refuse_streams(self.path)
        try:
            with open_regular(self.path) as file:
                head = file.read(_HEAD_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise storage_error(error, self.path) from error
        if head and not (head.startswith(b'{"format": ') and b'"identity": ' in head):
            raise UsageError(
                f"{self.path} exists and is not a state file of an evaluation", hint="name another file"
            )

    def load(self) -> tuple[Progress | None, str]:
        """Read what earlier runs left."""
        found, why = self._read(self.path)
        for part in self._parts():
            other, _ = self._read(part)
            if other is not None and found is not None:
                found.merge(other)
            found = found or other
        return found, "" if found is not None else why

    def _parts(self) -> list[Path]:
        pattern = re.compile(re.escape(self.path.name + _PART) + r"\d+")
        try:
            return sorted(path for path in self.path.parent.iterdir() if pattern.fullmatch(path.name))
        except OSError:
            return []

    def _read(self, path: Path) -> tuple[Progress | None, str]:
        try:
            values = json.loads(read_regular(path, _MAX_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None, ""
        except OSError as error:
            return None, f"the state file cannot be read ({storage_error(error, path).message})"
        except (ValueError, RecursionError):
            return None, "the state file is damaged"
        if not isinstance(values, dict) or not isinstance(values.get("identity"), dict):
            return None, "the state file is no such file"
        if values.get("format") != _FORMAT:
            return None, "the state file is of another version"
        said = values["identity"]
        changed = [key for key in self._identity if said.get(key) != self._identity[key]]
        if changed:
            return None, " and ".join(changed) + (" has" if len(changed) == 1 else " have") + " changed"
        found = Progress.from_json(values.get("progress") or {}, self._images)
        return found, "" if found else "the state file is damaged"

    def save(self, progress: Progress, *, try_only: bool = False) -> None:
        """Write progress, whole or not at all; ``try_only`` finds out whether that would be possible."""
        values = {"format": _FORMAT, "identity": self._identity, "progress": progress.to_json()}
        try:
            with StagedFile(self._own, force=True, own=True) as file:
                file.append(json.dumps(values).encode())
                if not try_only:
                    file.commit()
            self.refused = None
        except (StorageError, UsageError) as error:
            self.refused = error
        self._saved = time.monotonic()

    def save_now_and_then(self, progress: Progress) -> None:
        """Write progress when the last time is some seconds ago."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save(progress)

    def gather(self, progress: Progress) -> None:
        """Keep the gathered progress in one file and remove the parts."""
        parts = self._parts()
        if parts:
            self.save(progress)
            if self.refused is None:
                _unlink(parts)

    def remove(self) -> None:
        """Forget it all: the evaluation is finished."""
        _unlink({self.path, self._own, *self._parts()})


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # a state file that stays is found out of date by the next run
            if stat.S_ISREG(path.lstat().st_mode):
                path.unlink()


def default_state_path(folder: Path, name: str, choices: Mapping[str, str]) -> Path:
    """Where the state of an evaluation is kept when nobody says: one file for each set of choices."""
    digest = hashlib.sha256(json.dumps(dict(choices), sort_keys=True).encode()).hexdigest()[:16]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-80:].strip("-.") or "evaluation"
    return folder / f"{stem}-{digest}.json"
