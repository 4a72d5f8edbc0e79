"""`torch.compile` for the PyTorch models, with its toolchain tried before anything slow is done."""

from __future__ import annotations

from typing import Any

from ckptkit.base.errors import UsageError


def require_compiler() -> None:
    """Check that `torch.compile` can compile here, by compiling next to nothing.

    On CPUs its code is C++, so it wants a C++ compiler and Python's headers; whether both are there and work
    together only a trial can tell. What it compiled it keeps on the disk, so that a second trial is quick.

    Raises
    ------
    UsageError
        When it cannot; says why.
    """
    import torch

    try:
        torch.compile(_little)(torch.zeros(8))
    except RuntimeError as error:  # what torch's compiler raises is derived from it, and private
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"torch.compile does not work here: {reason}",
            hint="install a C++ compiler (g++) and Python's headers, or leave compile out",
        ) from error


def _little(x: Any) -> Any:
    return x.sin() + 1


def compiled(model: Any) -> Any:
    """Let a model's calls be compiled from the first one on; the model stays the object it is.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        The same. The first call of each input shape, batch size included, compiles it for that shape; its
        other methods (``forward_stages`` …) and copies of it run uncompiled.
    """
    # Shapes that may vary: MOAT's graph was not compiled after nine minutes (torch 2.13, a busy CPU).
    model.compile(dynamic=False)
    return model
