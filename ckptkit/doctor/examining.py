"""The whole examination: everything that is quick one after the other, what waits all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from ckptkit.base.errors import CkptkitError
from ckptkit.doctor import devices, folders, network, packages, settings, system
from ckptkit.doctor.findings import Examination, Finding
from ckptkit.store.sources import Mirror, parse_mirrors

Advance = Callable[[int], object]


def examine(
    *,
    offline: bool = False,
    registries: Sequence[Path] = (),
    mirrors: Sequence[str] = (),
    advance: Advance = lambda _step: None,
    stdout: TextIO | None = None,
) -> Examination:
    """Look at everything ckptkit depends on; nothing is changed, and nothing is fetched.

    Parameters
    ----------
    offline : bool
        Ask no host.
    registries : sequence of Path
        Overlays on the built-in registry.
    mirrors : sequence of str
        ``FROM=TO`` rules.
    advance : callable
        Called with 1 for each host and each framework that answered.
    stdout : TextIO, optional
        Where results go; ``sys.stdout`` where not given, which a progress bar replaces while it is shown.
    """
    asked = _Questions(devices.questions(), advance)
    found_registries, registry = folders.examine_registries(registries)
    rules, wrong = _rules(mirrors)
    hosts: list[Finding] = []
    if offline:
        hosts = [Finding("network", "hosts", "ok", "not asked, for --offline is given")]
    elif registry is not None:
        hosts = network.examine_hosts(network.hosts_of(registry, rules), advance=advance)
    findings = [
        *packages.examine_versions(),
        *packages.examine_packages(),
        *folders.examine_folders(),
        folders.examine_trust(),
        *found_registries,
        *settings.examine_settings(),
        *wrong,
        *hosts,
        *devices.compared(asked.answers()),
        *system.examine_machine(),
        *system.examine_terminal(stdout),
    ]
    return Examination(tuple(findings))


def _rules(mirrors: Sequence[str]) -> tuple[tuple[Mirror, ...], list[Finding]]:
    """The mirror rules of the command line and the environment; none, and why, where one is wrong."""
    try:
        return parse_mirrors(mirrors), []
    except CkptkitError as error:
        said = Finding("environment", "mirrors", "problem", error.message, error.hint or "")
    try:
        return parse_mirrors(mirrors, ""), []  # what is wrong with the variable is said of the variable
    except CkptkitError:
        return (), [said]


class _Questions:
    """Questions that are asked behind, each in a thread; the answers keep the order of the questions."""

    def __init__(self, questions: Sequence[Callable[[], Finding | None]], advance: Advance) -> None:
        self._found: list[Finding | None] = [None] * len(questions)
        self._advance = advance
        self._threads = [
            threading.Thread(target=self._ask, args=(place, question), daemon=True)
            for place, question in enumerate(questions)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, place: int, question: Callable[[], Finding | None]) -> None:
        try:
            self._found[place] = question()
        except OSError as error:  # no process can be started
            self._found[place] = Finding(
                "devices", "processes", "note", f"cannot be started: {error.strerror}"
            )
        self._advance(1)

    def answers(self) -> list[Finding]:
        """Wait for all of them; each has a time limit of its own."""
        for thread in self._threads:
            thread.join()
        return [one for one in self._found if one is not None]
