"""The Python face: each public function, as `import ckptkit` offers it.

The functions use the environment's settings (``CKPTKIT_HOME``, ``CKPTKIT_REGISTRY``,
``CKPTKIT_MIRROR``); what they have to say goes to the ``ckptkit`` logger.
"""

from __future__ import annotations

from ckptkit import models
from ckptkit.api.checkpoints import (
    check_rules,
    convert,
    diff,
    fetch,
    inspect,
    load,
    registry,
    scan,
    suggest_rules,
    synth,
    verify,
)
from ckptkit.api.environment import public
from ckptkit.api.pictures import calibrate, cam, evaluate, predict, transform
from ckptkit.api.proving import export, keep_processes, logs, parity, plot, profile

create_model = public(models.create_model)

__all__ = [
    "calibrate",
    "cam",
    "check_rules",
    "convert",
    "create_model",
    "diff",
    "evaluate",
    "export",
    "fetch",
    "inspect",
    "keep_processes",
    "load",
    "logs",
    "parity",
    "plot",
    "predict",
    "profile",
    "registry",
    "scan",
    "suggest_rules",
    "synth",
    "transform",
    "verify",
]
