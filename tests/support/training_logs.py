"""Small training logs, line by line as mmcv and timm write them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ENVIRONMENT = {
    "env_info": "sys.platform: linux\nPython: 3.8.13\nPyTorch: 1.10.0\nOpenMixup: 0.2.7+",
    "seed": 0,
    "exp_name": "moga_xtiny_sz224_8xb128_fp16_ep300.py",
    "hook_msgs": {},
}


def train_line(epoch: int, iteration: int, loss: float, **more: Any) -> dict[str, Any]:
    """One of mmcv's lines on training: means over the iterations since the last one."""
    values = {"mode": "train", "epoch": epoch, "iter": iteration, "lr": 0.001, "memory": 9124}
    return {**values, "data_time": 0.02, "loss": loss, "time": 0.5, **more}


def val_line(epoch: int, top1: float, top5: float, head: str = "head0", **more: Any) -> dict[str, Any]:
    """One of OpenMixup's lines on a validation."""
    values = {"mode": "val", "epoch": epoch, "iter": 49, "lr": 0.0005}
    return {**values, f"{head}_top1": top1, f"{head}_top5": top5, **more}


def mmcv_log(lines: Iterable[Mapping[str, Any]], *, environment: bool = True) -> str:
    """Text of a ``.log.json``."""
    every = [*([ENVIRONMENT] if environment else []), *lines]
    return "".join(f"{json.dumps(line)}\n" for line in every)


THREE_EPOCHS = mmcv_log(
    [
        train_line(1, 100, 6.5, lr=0.0001),
        train_line(1, 200, 6.3, lr=0.0002),
        val_line(1, 10.25, 25.5, lr=0.0002),
        train_line(2, 100, 5.5),
        train_line(2, 200, 5.0),
        val_line(2, 76.75, 93.5),
        train_line(3, 100, 4.5),
        train_line(3, 200, 4.1),
        val_line(3, 76.25, 93.75, lr=1e-05),
    ]
)
"""Losses 6.4, 5.25 and 4.3 on the mean; the second epoch is the best; 200 iterations of half a second."""


def long_log(epochs: int = 300) -> str:
    """A log of a whole training, whose curves look like those of one."""
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        lr = 0.001 * min(1.0, epoch / 5) * (1 - 0.99 * done)
        loss = 3.0 + 3.9 * (1 - done) ** 3 + 0.03 * ((epoch * 7919) % 11 - 5) / 5
        top1 = 76.6 * (1 - (1 - done) ** 4) - 0.4 * ((epoch * 104729) % 7) / 7 * (1 - done)
        lines += [train_line(epoch, step, loss, lr=lr) for step in (600, 1200)]
        lines.append(val_line(epoch, round(top1, 3), round(min(93.5, top1 * 1.22), 3), lr=lr))
    return mmcv_log(lines)


def summary(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Text of a ``summary.csv``; Python's csv module ends its lines with CR and LF, so timm's have these."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


PLAIN = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5")
