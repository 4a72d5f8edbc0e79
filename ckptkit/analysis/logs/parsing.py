"""From a file to a `TrainingLog`: what kind it is, is told by its content."""

from __future__ import annotations

from pathlib import Path

from ckptkit.analysis.logs.lines import LogFile
from ckptkit.analysis.logs.mmcv_json import parse_mmcv
from ckptkit.analysis.logs.records import Framework, TrainingLog
from ckptkit.analysis.logs.timm_csv import is_header, parse_timm
from ckptkit.base.errors import FormatError

_READERS = {"mmcv": parse_mmcv, "timm": parse_timm}


def parse_log(path: Path, *, name: str | None = None) -> TrainingLog:
    """Read a training log."""
    file = LogFile(path)
    framework = _framework(file)
    epochs, remarks = _READERS[framework](file)
    log = TrainingLog(name or str(path), path, framework, epochs, remarks)
    if not log.figures():
        raise FormatError(path, "its epochs have no figures", hint="check the file, or fetch it again")
    return log


def _framework(file: LogFile) -> Framework:
    start = file.start
    if start.startswith(b"{"):
        return "mmcv"
    if is_header(start):
        return "timm"
    if start.startswith(b"<"):
        raise FormatError(file.path, "a web page, not a training log", hint="download it again")
    raise FormatError(
        file.path, "no training log: neither JSON lines of mmcv nor a CSV file with a column 'epoch'"
    )
