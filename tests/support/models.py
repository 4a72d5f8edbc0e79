"""Running models of any framework on the same images."""

from __future__ import annotations

import numpy as np
import pytest

FRAMEWORKS = ("torch", "keras")


def need(framework):
    pytest.importorskip({"torch": "torch", "keras": "tensorflow"}.get(framework, framework))


def run(model, framework, x):
    """Output of a model on NHWC images, brought back to numpy (and features to NHWC)."""
    if framework == "keras":
        out = model(x)
        return [np.asarray(o) for o in out] if isinstance(out, list) else np.asarray(out)
    if framework == "onnxruntime":
        out = model(x.transpose(0, 3, 1, 2))
        return [o.transpose(0, 2, 3, 1) for o in out] if isinstance(out, list) else out
    import torch

    with torch.inference_mode():
        out = model(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    return [o.numpy().transpose(0, 2, 3, 1) for o in out] if isinstance(out, list) else out.numpy()


def torch_images(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
