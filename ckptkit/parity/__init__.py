"""Parity: one checkpoint, two frameworks, the same inputs, compared stage by stage.

The Keras model reads the TensorFlow side by its own variable names, the PyTorch model reads the other side;
between the two stands the real conversion, so a wrong rule of it, or a fault of either model, shows as a
stage that departs. `inputs` makes what both models see, `forward` runs one framework after the other,
`comparison` judges, `report` tells people, JSON and CI systems. `onnx_backend` has ONNX Runtime in the place
of Keras. `preparation` compares the ways of a picture to the models: by Pillow, and by each framework alone.
"""

from ckptkit.parity.backends import backend_named, chosen_backends, run_with
from ckptkit.parity.comparison import TOLERANCES, Limit, StageComparison, Tolerance, TopAgreement
from ckptkit.parity.inputs import DEFAULT_BATCH, DEFAULT_SEED, Inputs
from ckptkit.parity.junit import junit_document
from ckptkit.parity.onnx_backend import run_onnx_parity
from ckptkit.parity.packages import require_packages
from ckptkit.parity.report import Failure, ParityReport, Side
from ckptkit.parity.run import run_parity, synthetic_checkpoint

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_SEED",
    "TOLERANCES",
    "Failure",
    "Inputs",
    "Limit",
    "ParityReport",
    "Side",
    "StageComparison",
    "Tolerance",
    "TopAgreement",
    "backend_named",
    "chosen_backends",
    "junit_document",
    "require_packages",
    "run_onnx_parity",
    "run_parity",
    "run_with",
    "synthetic_checkpoint",
]
