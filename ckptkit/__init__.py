"""ckptkit: fetch, verify, convert and prove published checkpoints."""

from ckptkit._version import __version__

__all__ = ["__version__"]
