"""What this machine has: versions, packages, cache, network, devices, each with a plain verdict."""

from __future__ import annotations

from ckptkit.doctor.examining import examine
from ckptkit.doctor.findings import Examination, Finding, Verdict

__all__ = ["Examination", "Finding", "Verdict", "examine"]
