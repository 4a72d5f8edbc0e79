"""What a reader must know of a checkpoint and its inputs to judge a parity report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckptkit.base.tensors import Array
from ckptkit.parity.files import ModelFile
from ckptkit.parity.inputs import Inputs

NO_STATISTICS = (
    "the file has no BatchNorm moving statistics: both models ran with mean 0 and variance 1, so this "
    "compares the other tensors only and says nothing of predictions"
)


def source_notes(
    source: ModelFile, inputs: Inputs, outputs: Mapping[str, Array], *, unknown: Sequence[str]
) -> Iterator[str]:
    """Tell what limits a comparison, whatever the source is compared with.

    Parameters
    ----------
    source : ModelFile
    inputs : Inputs
    outputs : mapping of str to numpy.ndarray
        Of the side that is the reference, channels last.
    unknown : sequence of str
        Behaviour settings that nobody said, so that either function was compared.
    """
    usual = source.recognition.family.default_resolution(source.recognition.variant)
    if source.lacks_statistics:
        yield NO_STATISTICS
    if source.recognition.structure.num_classes is None:
        yield "the file has no classification head: the stages are compared, there are no logits"
    if source.plan.weights is not None:
        yield f"the file holds raw weights and moving averages; both sides took {source.plan.weights}"
    for key in unknown:
        yield f"{key} is not known of this file: both functions it may stand for were compared"
    unread = source.recognition.family.unread_at_small_inputs(source.recognition.structure)
    if unread and min(inputs.height, inputs.width) < usual:
        yield (
            f"the input is smaller than the {usual} pixels this variant was published for, and small {unread}"
        )
    last = [output for output in outputs.values() if output.ndim == 4][-1]
    if last.shape[1:3] == (1, 1):
        yield "the last stage is a single place at this resolution; a larger one tests more"
