"""The one table from what went wrong to what the process returns."""

from __future__ import annotations

from enum import IntEnum

from ckptkit.base import errors


class ExitCode(IntEnum):
    """What each exit status means (documented in the README)."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NETWORK = 4
    DAMAGED = 5
    MISSING_PACKAGE = 6
    INTERRUPTED = 130


_BY_ERROR: dict[type[errors.CkptkitError], ExitCode] = {
    errors.UsageError: ExitCode.USAGE,
    errors.NotFoundError: ExitCode.NOT_FOUND,
    errors.NetworkError: ExitCode.NETWORK,
    errors.FormatError: ExitCode.DAMAGED,
    errors.IntegrityError: ExitCode.DAMAGED,
    errors.RegistryError: ExitCode.DAMAGED,
    errors.ConversionError: ExitCode.DAMAGED,
    errors.StorageError: ExitCode.DAMAGED,
    errors.MissingDependencyError: ExitCode.MISSING_PACKAGE,
}


def exit_code(error: errors.CkptkitError) -> ExitCode:
    """Exit status for an error.

    Examples
    --------
    >>> exit_code(errors.NotFoundError("no entry 'moat9'"))
    <ExitCode.NOT_FOUND: 3>
    """
    return next((code for kind, code in _BY_ERROR.items() if isinstance(error, kind)), ExitCode.DAMAGED)
