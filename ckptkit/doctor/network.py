"""Whether the hosts of the registry answer: asked as a fetch asks, through the same proxies and mirrors.

A host answers when any HTTP answer comes from it, be it a refusal: the question is whether the way is open.
"""

from __future__ import annotations

import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ckptkit.base.errors import CkptkitError
from ckptkit.base.net import (
    CA_VARIABLES,
    Credentials,
    PassingError,
    Policy,
    RangeError,
    Session,
    SourceError,
    SourceGoneError,
)
from ckptkit.base.urls import full_url, is_local
from ckptkit.doctor.findings import Finding, Verdict
from ckptkit.registry.query import EntryFacts
from ckptkit.store.openers import open_http
from ckptkit.store.sources import Mirror, resolve

GITHUB_API = "https://api.github.com"
PATIENCE = Policy(
    connect_timeout=5.0,
    read_timeout=5.0,
    head_seconds=5.0,
    credentials=Credentials({"NETRC": os.devnull}, token_hosts={}),
)
"""For a front page nobody needs to say who they are, so no token and no password is sent."""
SECONDS = 12.0
"""How long all hosts together may take: an answer that trickles keeps within the timeouts of each step."""


_PLURALS = {
    "file": "files",
    "file by hand": "files by hand",
    "log": "logs",
    "configuration": "configurations",
}


@dataclass
class Host:
    """One place that addresses of the registry lead to.

    Attributes
    ----------
    origin : str
        Scheme, host and port.
    uses : dict of str to int
        What for, and how many addresses: ``file``, ``log``, ``configuration``, ``file by hand``.
    """

    origin: str
    uses: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Host, and port where one is given."""
        return urlsplit(self.origin).netloc or self.origin

    @property
    def purpose(self) -> str:
        """What it is for, in words."""
        return ", ".join(
            f"{count} {what if count == 1 else _PLURALS[what]}" if count else what
            for what, count in self.uses.items()
        )


def hosts_of(entries: Mapping[str, EntryFacts], mirrors: Sequence[Mirror] = ()) -> list[Host]:
    """The places that the addresses of entries lead to, after the mirror rules."""
    hosts: dict[str, Host] = {}
    for what, address in _addresses(entries):
        # A person goes to a page by hand, and nobody is asked for a configuration: no mirror counts there.
        url = full_url(address)
        used = resolve(url, mirrors) if what in ("file", "log") else url
        parts = urlsplit(used)
        origin = (
            "file://" if is_local(used) else f"{parts.scheme.lower()}://{parts.netloc.rpartition('@')[2]}"
        )
        uses = hosts.setdefault(origin, Host(origin)).uses
        uses[what] = uses.get(what, 0) + 1
    if "https://github.com" in hosts and "file" in hosts["https://github.com"].uses:
        hosts.setdefault(GITHUB_API, Host(GITHUB_API)).uses["digests of files"] = 0
    return list(hosts.values())


def _addresses(entries: Mapping[str, EntryFacts]) -> Iterator[tuple[str, str]]:
    for entry in entries.values():
        for source in entry.sources:
            yield ("file by hand" if source.manual else "file"), source.url
        if entry.log_url:
            yield "log", entry.log_url
        if entry.config_url:
            yield "configuration", entry.config_url


def examine_hosts(
    hosts: Sequence[Host],
    *,
    policy: Policy = PATIENCE,
    seconds: float = SECONDS,
    advance: Callable[[int], object] = lambda _step: None,
) -> list[Finding]:
    """Ask every host at the same time; one that takes too long counts as not answering.

    Returns
    -------
    list of Finding
        In the order of the hosts. That one cannot be reached is a note; where none of those that are asked
        for files can be, it is a problem.
    """
    asked = [host for host in hosts if urlsplit(host.origin).scheme in ("http", "https")]
    answers: queue.SimpleQueue[tuple[str, Answer]] = queue.SimpleQueue()
    for host in asked:
        # Daemons: one that hangs in a name lookup must not keep the process from ending.
        threading.Thread(target=_ask_for, args=(host.origin, policy, answers), daemon=True).start()
    found: dict[str, Answer] = {}
    ends = time.monotonic() + seconds
    while len(found) < len(asked):
        try:
            origin, answer = answers.get(timeout=max(ends - time.monotonic(), 0.0))
        except queue.Empty:
            break
        found[origin] = answer
        advance(1)
    late = Answer(
        False, f"timeout: no answer within {seconds:g} s", "check the network, the proxy, the firewall"
    )
    return [_finding(host, found.get(host.origin, late), asked, found) for host in hosts]


@dataclass(frozen=True)
class Answer:
    """Whether a host answers, what was found, what to do."""

    reached: bool
    said: str
    advice: str = ""


def _finding(host: Host, answer: Answer, asked: Sequence[Host], found: dict[str, Answer]) -> Finding:
    if host not in asked:
        where = "on this machine" if host.origin == "file://" else "an object store, not asked here"
        return Finding("network", host.name, "ok", f"{where} ({host.purpose})")
    needed = [one for one in asked if "file" in one.uses]
    nothing = not any(one.origin in found and found[one.origin].reached for one in needed)
    verdict: Verdict = "ok" if answer.reached else "problem" if nothing and host in needed else "note"
    return Finding("network", host.name, verdict, f"{answer.said} ({host.purpose})", answer.advice)


def _ask_for(origin: str, policy: Policy, answers: queue.SimpleQueue[tuple[str, Answer]]) -> None:
    try:
        answer = ask(origin, policy)
    except (
        Exception
    ) as error:  # in a thread of its own nobody would see it, and the host is merely not reached
        answer = Answer(False, f"failed: {type(error).__name__}")
    answers.put((origin, answer))


def ask(origin: str, policy: Policy = PATIENCE) -> Answer:
    """Ask one host for its front page; the body is not read."""
    session = Session(policy)
    try:
        with open_http(session, f"{origin}/"):
            return Answer(True, "reachable")
    except SourceGoneError:
        return Answer(True, "reachable")
    except CkptkitError as error:  # a package or a file that the environment names is missing
        return Answer(False, error.message, error.hint or "")
    except (SourceError, PassingError, RangeError) as error:
        if error.__cause__ is None:
            return _refusal(str(error))
        return explained(error.__cause__)
    finally:
        session.close()


def _refusal(said: str) -> Answer:
    """An HTTP answer that is none a fetch could use."""
    if said.startswith("407"):
        return Answer(
            False, f"blocked by the proxy: {said}", "give the proxy's user name and password in its URL"
        )
    return Answer(True, f"reachable, answers {said}" if said[:1].isdigit() else f"reachable ({said})")


def explained(error: BaseException) -> Answer:
    """What went wrong below HTTP, in words."""
    import requests

    chain = list(_chain(error))
    if isinstance(error, requests.exceptions.SSLError):
        why = next((str(one) for one in chain if isinstance(one, ssl.SSLError)), str(error))
        advice = f"where a proxy opens TLS connections, {CA_VARIABLES[0]} names its certificate"
        return Answer(False, f"TLS failure: {_brief(why)}", advice)
    if isinstance(error, requests.exceptions.ProxyError):
        why = _brief(str(chain[-1]))
        return Answer(False, f"blocked by the proxy: {why}", "check HTTPS_PROXY and NO_PROXY")
    if isinstance(error, requests.exceptions.Timeout):
        return Answer(False, "timeout: no answer", "check the network, the proxy, the firewall")
    if any(isinstance(one, socket.gaierror) for one in chain):
        return Answer(False, "its name is not known here", "check the network and its name servers")
    if any(isinstance(one, ConnectionRefusedError) for one in chain):
        return Answer(False, "refused: nothing listens there", "check the address, the firewall, the mirror")
    return Answer(False, f"connection failed: {_brief(str(chain[-1]))}", "check the network and the firewall")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from, the innermost last."""
    seen: BaseException | None = error
    for _ in range(12):
        if not isinstance(seen, BaseException):
            return
        yield seen
        inner = getattr(seen, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((one for one in seen.args if isinstance(one, BaseException)), None)
        seen = inner or seen.__cause__ or seen.__context__


def _brief(text: str) -> str:
    return " ".join(text.split())[:160]
