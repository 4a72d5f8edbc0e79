"""A target that misbehaves at certain cases, to see that the campaign notices."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from unittest import mock

from tests.fuzz import target
from tests.fuzz.target import Outcome, case, warm_up

__all__ = ["case", "examine", "warm_up"]


def _endless(path: Path, opener: target.Opener) -> str:
    while True:
        path.exists()


def _greedy(path: Path, opener: target.Opener) -> str:
    return f"read {len(bytearray(300 << 20))}"


def _wrong(path: Path, opener: target.Opener) -> str:
    raise ValueError("not a refusal")


def _littering(path: Path, opener: target.Opener) -> str:
    import tempfile

    Path(tempfile.mkstemp()[1]).write_text("left")
    return "read"


def _murdered(path: Path, opener: target.Opener) -> str:
    os.kill(os.getpid(), signal.SIGSEGV)
    return "read"


def _asleep(path: Path, opener: target.Opener) -> str:
    time.sleep(60)
    return "read"


PLANTED = {
    "fault: too long": _endless,
    "fault: MemoryError": _greedy,
    "fault: ValueError": _wrong,
    "fault: left behind": _littering,
    "fault: process died (-11)": _murdered,
    "fault: hangs": _asleep,
}


def examine(format: str, files: dict[str, bytes], opened: str, folder: Path, how: int) -> Outcome:
    """Each of the first cases of a campaign with seed 5 misbehaves in its own way; the others are honest."""
    for number, misbehave in enumerate(PLANTED.values()):
        if files == target.case(format, 5, number)[1]:
            with mock.patch.object(target, "read_to_the_end", misbehave):
                return target.examine(format, files, opened, folder, how)
    return target.examine(format, files, opened, folder, how)
