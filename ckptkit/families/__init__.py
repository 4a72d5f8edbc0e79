"""The architecture families: everything that knows a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptkit.registry import Families


def registry_families(plugins: bool = True) -> Families:
    """What entries of the registry are checked against, with the families of plug-ins or without."""
    from ckptkit.families.base import families, get_family

    return {name: get_family(name).registry_facts() for name in families(plugins)}
