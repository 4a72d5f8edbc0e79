"""The settings of the environment that the Python face stands on."""

from __future__ import annotations

import logging

from ckptkit.workspace import Workspace

logger = logging.getLogger("ckptkit")


def workspace_of_environment() -> Workspace:
    """Registries, cache and network rules as ``CKPTKIT_…`` variables say; notes go to the logger."""
    return Workspace(note=logger.info, warn=logger.warning)
