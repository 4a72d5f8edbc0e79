"""Verification: whether a checkpoint holds what it should.

Five questions, in the order they are asked: are these the bytes that were published (`checksum`), is the
container whole (`run`), are these the architecture's tensors (`architecture`), could their values be those of
a trained model (`values`), and is the parameter count the published one (`parameters`)? Each answer is a
`Check` of a `VerifyReport`.
"""

from ckptkit.compare.verify.report import Check, Status, VerifyReport
from ckptkit.compare.verify.run import verify_checkpoint

__all__ = ["Check", "Status", "VerifyReport", "verify_checkpoint"]
