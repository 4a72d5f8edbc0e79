"""The classes of a model's head: how a user names them, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass

from ckptkit.base.errors import UsageError
from ckptkit.models.images.classes import ImageClass, find_class, imagenet_classes


@dataclass(frozen=True)
class HeadClasses:
    """The classes that a head of some size tells apart."""

    count: int  # outputs of the head

    def find(self, target: int | str) -> int:
        """Place among the logits of a class given by index, WordNet id or name.

        >>> HeadClasses(1000).find("golden retriever"), HeadClasses(10).find(7)
        (207, 7)
        """
        text = str(target)
        if self._named:
            return find_class(text).index
        if not (text.isascii() and text.isdigit() and int(text) < self.count):
            raise UsageError(
                f"no class {text!r}",
                hint=f"this head has {self.count} classes without names: give 0 to {self.count - 1}",
            )
        return int(text)

    def named(self, index: int) -> ImageClass | None:
        """Names of a class, where they are known."""
        return imagenet_classes()[index] if self._named else None

    @property
    def _named(self) -> bool:
        return self.count == len(imagenet_classes())
