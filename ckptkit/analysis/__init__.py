"""What models cost and how well they do: counting, and comparing with what was published.

torch is imported only when something is really counted.
"""

from __future__ import annotations

from ckptkit.analysis.audit import EntryAudit, ProfileReport, audit_registry, profile_model
from ckptkit.analysis.figures import FigureCheck, check_figure
from ckptkit.analysis.modules import ModuleProfile
from ckptkit.analysis.profile import Profile, Subject, convention_of, profile, subject_of

__all__ = [
    "EntryAudit",
    "FigureCheck",
    "ModuleProfile",
    "Profile",
    "ProfileReport",
    "Subject",
    "audit_registry",
    "check_figure",
    "convention_of",
    "profile",
    "profile_model",
    "subject_of",
]
