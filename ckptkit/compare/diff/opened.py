"""One of the two files of a comparison: open, recognised, and set against its architecture."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.compare.diff.report import Side
from ckptkit.families.base import Recognition, recognise
from ckptkit.families.binding import FileFacts, Match, Weights, match
from ckptkit.workspace import Located

if TYPE_CHECKING:
    from ckptkit.formats.base import Reader


@dataclass(frozen=True)
class Opened(AbstractContextManager["Opened"]):
    """An open file.

    Parameters
    ----------
    located : Located
    reader : Reader
        Closed at the end of the ``with`` block.
    recognition : Recognition or None
        None when it is of no known architecture.
    weights : {"auto", "ema", "raw"}
        Which copy is wanted where the file holds both.
    """

    located: Located
    reader: Reader
    recognition: Recognition | None
    weights: Weights

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    @property
    def name(self) -> str:
        """What to call it: the entry's id, else the path."""
        return self.located.name

    def match(self, recognition: Recognition) -> Match:
        """Set the file's tensors against its architecture.

        Raises
        ------
        UsageError
            When a copy of the weights is asked for that the file does not hold.
        ConversionError
            When it holds that copy of some parameters only.
        """
        specs, known = self.reader.specs, FileFacts.of(self.reader, self.located.entry)
        try:
            return match(specs, recognition, weights=self.weights, known=known)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error.message}", hint=error.hint) from error
        except ConversionError as error:
            if self.weights != "auto":
                raise ConversionError(f"{self.name}: {error.message}", hint=error.hint) from error
            # Nobody asked for that copy; what is there whole can be compared.
            twin = recognition.table.layout.second_copy
            return match(specs, recognition, weights=twin.plain if twin else "raw", known=known)

    def refuse_weights(self) -> None:
        """Raise UsageError when a copy is asked for and nothing tells which tensors it is made of."""
        if self.weights != "auto" and self.reader.weights is None:
            raise UsageError(
                f"{self.name}: nothing tells which of its tensors are {self.weights}",
                hint="--weights needs files of one known family, and no --layout as-is",
            )

    def side(self, found: Match | None) -> Side:
        """What to report of the file."""
        known = self.recognition
        return Side(
            name=self.name,
            path=self.located.path,
            format=self.reader.format,
            family=known.family.name if known else None,
            variant=known.variant if known else None,
            layout=known.layout if known else None,
            weights=found.weights if found else self.reader.weights,
            state_dict=self.reader.state_dict if len(self.reader.state_dicts) > 1 else None,
            tensors=len(self.reader.specs),
            left_out=dict(self.reader.left_out),
            also=dict(self.reader.also),
        )

    def settings(self) -> dict[str, str]:
        """What the entry, or else the file, says of the settings that change the model's output, as JSON."""
        said = {}
        for key in self.recognition.family.behaviour if self.recognition else ():
            by_entry = getattr(self.located.entry, key, None)
            if by_entry is not None:
                said[key] = json.dumps(by_entry)
            elif key in self.reader.metadata:
                said[key] = self.reader.metadata[key]  # as it stands: a comparison need not understand it
        return said

    def metadata(self) -> dict[str, str]:
        """What the file says of itself, and the settings that its registry entry says."""
        return {**self.reader.metadata, **self.settings()}


def open_side(located: Located, weights: Weights, *, unwrap: bool = True) -> Opened:
    """Open one side of a comparison.

    Parameters
    ----------
    located : Located
    weights : {"auto", "ema", "raw"}
        Which copy where the file holds both.
    unwrap : bool
        Take off what wrappers put before a known model's names.

    Raises
    ------
    CkptkitError
        As `Located.open` raises it.
    """
    reader = located.open(weights, unwrap=unwrap)
    try:
        return Opened(located, reader, recognise(reader.specs), weights)
    except BaseException:
        reader.close()
        raise
