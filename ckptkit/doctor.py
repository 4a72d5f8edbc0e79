"""What this machine has and lacks: versions, packages, cache, network, devices, each with a plain verdict.

Everything that is quick is looked at one after the other, what waits all at once; nothing is changed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO
from urllib.parse import urlsplit

from ckptkit._version import DISTRIBUTION, __version__, strangers
from ckptkit.base.errors import CkptkitError, storage_error
from ckptkit.base.extras import Requirement, install_command, requirements
from ckptkit.base.files import TEMPORARY
from ckptkit.base.home import NOWHERE, home_folders, is_writable
from ckptkit.base.locks import hold
from ckptkit.base.net import (
    CA_VARIABLES,
    TOKEN_HOSTS,
    Credentials,
    PassingError,
    Policy,
    RangeError,
    Session,
    SourceError,
    SourceGoneError,
)
from ckptkit.base.text import human_bytes
from ckptkit.base.urls import full_url, is_local, without_secrets
from ckptkit.registry.schema import Entry
from ckptkit.store.cache import KINDS
from ckptkit.store.lockfile import LockFile
from ckptkit.store.openers import open_http
from ckptkit.store.sources import ENVIRONMENT as MIRROR
from ckptkit.store.sources import Mirror, parse_mirrors, resolve

if TYPE_CHECKING:
    from ckptkit.registry import Registry


Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    section: str  # the heading it is under: versions, packages, cache, …
    name: str
    verdict: Verdict  # a problem stops fetching, verifying and converting; a note is worth knowing
    said: str  # what was found
    advice: str = ""  # what to do


@dataclass(frozen=True)
class Examination:
    """Everything that was found, in the order of its sections."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.of("problem")

    def of(self, verdict: Verdict) -> list[Finding]:
        """The findings with one verdict."""
        return [finding for finding in self.findings if finding.verdict == verdict]

    @property
    def sections(self) -> Sequence[str]:
        """The headings, in order."""
        return list(dict.fromkeys(finding.section for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes."""
        return {
            "ok": self.ok,
            "problems": len(self.of("problem")),
            "notes": len(self.of("note")),
            "findings": [asdict(finding) for finding in self.findings],
        }


Advance = Callable[[int], object]


def examine(
    *,
    offline: bool = False,
    registries: Sequence[Path] = (),
    mirrors: Sequence[str] = (),
    advance: Advance = lambda _step: None,
    stdout: TextIO | None = None,
) -> Examination:
    """Look at everything ckptkit depends on; ``advance`` counts the hosts and frameworks that answered.

    ``stdout`` is where results go, which a progress bar replaces while it is shown.
    """
    probes = _Probes(questions(), advance)
    found_registries, registry = examine_registries(registries)
    rules, wrong_rules = _mirror_rules(mirrors)

    def hosts() -> list[Finding]:
        if offline:
            return [Finding("network", "hosts", "ok", "not asked: --offline is given")]
        if registry is None:
            return []
        return examine_hosts(hosts_of(registry, rules), advance=advance)

    checks: list[Callable[[], Iterable[Finding]]] = [
        examine_versions,
        examine_packages,
        examine_folders,
        lambda: [examine_trust(), *found_registries],
        examine_settings,
        lambda: wrong_rules,
        hosts,
        lambda: compared(probes.answers()),
        examine_machine,
        lambda: examine_terminal(stdout),
    ]
    return Examination(tuple(finding for check in checks for finding in check()))


def _mirror_rules(mirrors: Sequence[str]) -> tuple[tuple[Mirror, ...], list[Finding]]:
    """The mirror rules of the command line and the environment; none, and why, where one is wrong."""
    try:
        return parse_mirrors(mirrors), []
    except CkptkitError as error:
        fault = Finding("environment", "mirrors", "problem", error.message, error.hint or "")
    try:
        return parse_mirrors(mirrors, ""), []  # a fault of the variable is reported with the variable
    except CkptkitError:
        return (), [fault]


class _Probes:
    """Questions asked in the background, a thread each; the answers keep the order of the questions."""

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


def examine_versions() -> list[Finding]:
    """Of ckptkit, Python and the platform."""
    implementation = platform.python_implementation()
    return [
        Finding("versions", "ckptkit", "ok", __version__),
        *_namesakes(),
        Finding(
            "versions", "Python", "ok", f"{platform.python_version()} ({implementation}), {sys.executable}"
        ),
        Finding("versions", "platform", "ok", platform.platform()),
    ]


def _namesakes() -> list[Finding]:
    """Another project's distribution of this name, and other copies of the package that Python could take."""
    found = [
        Finding(
            "versions",
            "ckptkit of others",
            "problem",
            f"{folder}: another project with the same import name and command",
            f"pip uninstall ckptkit; then install {DISTRIBUTION} again, as both have the same files",
        )
        for folder in strangers()
    ]
    taken = Path(__file__).with_name("__init__.py")
    for place in dict.fromkeys(sys.path):
        other = Path(place or os.curdir, "ckptkit", "__init__.py")
        if other.is_file() and not other.samefile(taken):
            text = f"{other.parent}; this one is {taken.parent}"
            advice = "remove one of them, or start Python elsewhere"
            found.append(Finding("versions", "ckptkit twice", "note", text, advice))
    return found


def examine_packages(needed: Iterable[Requirement] | None = None) -> list[Finding]:
    """What ckptkit always needs in one line if all is well, then each package of each extra."""
    try:
        found = requirements() if needed is None else list(needed)
    except importlib.metadata.PackageNotFoundError:
        text = "ckptkit runs without being installed, so which packages it supports is not known"
        return [Finding("packages", "metadata", "note", text, "pip install -e .")]
    base = [one for one in found if not one.extra]
    extras = _by_package(one for one in found if one.extra)
    wrong = [finding for one in base if (finding := _examine(one, "")).verdict != "ok"]
    fine = len(base) - len(wrong)
    return [
        Finding("packages", "always needed", "ok", f"{fine} packages, as supported"),
        *wrong,
        *(_examine(one, ", ".join(names)) for one, names in extras),
    ]


def _by_package(found: Iterable[Requirement]) -> list[tuple[Requirement, list[str]]]:
    """Each package once, with the extras that bring it."""
    packages: dict[str, tuple[Requirement, list[str]]] = {}
    for one in found:
        packages.setdefault(one.name.lower(), (one, []))[1].append(one.extra)
    return list(packages.values())


def _examine(one: Requirement, extras: str) -> Finding:
    """Look for a package. Without an extra it is one that ckptkit cannot do without."""
    version = one.installed
    install = f"pip install {one.install_word}"
    brought = f", extra {extras}" if extras else ""
    if version is None:
        text = f"not installed{brought}"
        return Finding("packages", one.name, "note" if one.extra else "problem", text, install)
    if not one.supports(version):
        text = f"{version}, but {one.supported} is supported{brought}"
        return Finding("packages", one.name, "note", text, install)
    if not _can_be_found(one.module):
        text = f"{version} is recorded, but the package itself is not there{brought}"
        advice = f"pip install --force-reinstall {one.install_word}"
        return Finding("packages", one.name, "note" if one.extra else "problem", text, advice)
    return Finding("packages", one.name, "ok", f"{version}{brought}")


def _can_be_found(module: str) -> bool:
    """Whether an import would find it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # hidden by an import hook, or by None in sys.modules
        return False


LITTLE_SPACE = 2_000_000_000
"""Bytes: the largest published files have some two gigabytes, unpacked once more."""
_TOO_LITTLE = 100_000_000
_COUNTING_SECONDS = 3.0
_ANOTHER = "set CKPTKIT_HOME to another folder"


def examine_folders() -> list[Finding]:
    """Look at each cache folder: there, writable, room, locks, letters."""
    first, *others = home_folders()
    return [*_examine_home(first), *(finding for other in others for finding in _examine_shared(other))]


def _examine_home(folder: Path) -> list[Finding]:
    """The folder that is written to."""
    if folder == NOWHERE:
        text = "there is none, for no home folder is known (HOME is not set)"
        return [Finding("cache", "folder", "problem", text, "set CKPTKIT_HOME to a folder")]
    if folder.exists() and not folder.is_dir():
        return [Finding("cache", "folder", "problem", f"{folder} is a file", _ANOTHER)]
    if not is_writable(folder):
        text = f"{folder} cannot be written" + ("" if folder.exists() else " and is not there")
        return [Finding("cache", "folder", "problem", text, f"{_ANOTHER}, or change who may write there")]
    if not folder.exists():
        text = f"{folder}, made when first needed"
        return [Finding("cache", "folder", "ok", text), _space(folder)]
    size = Finding("cache", "folder", "ok", f"{folder}, holds {_size(folder)}")
    return [size, *_closed(folder), _space(folder), *_file_system(folder)]


def _closed(folder: Path) -> list[Finding]:
    """Folders below that somebody else made and that cannot be written."""
    closed = [name for name in (*KINDS, "locks") if not is_writable(folder / name)]
    if not closed:
        return []
    text = f"{folder} can be written, but not {', '.join(closed)} in it: entries go to the next folder"
    advice = "CKPTKIT_HOME may list another folder behind it; 'chmod -R g+w' by their owner opens them"
    return [Finding("cache", "shared folder", "note", text, advice)]


def _examine_shared(folder: Path) -> list[Finding]:
    """A folder that is only read."""
    if not folder.is_dir():
        text, advice = f"{folder} is not there", "check CKPTKIT_HOME"
        return [Finding("cache", "shared folder", "note", text, advice)]
    if not os.access(folder, os.R_OK | os.X_OK):
        text, advice = f"{folder} cannot be read", "ask whoever it belongs to"
        return [Finding("cache", "shared folder", "note", text, advice)]
    return [Finding("cache", "shared folder", "ok", f"{folder}, holds {_size(folder)}")]


def _space(folder: Path) -> Finding:
    """Room on the disk, in the nearest folder that is there."""
    there = folder
    while not there.exists():
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding("cache", "free space", "note", str(storage_error(error, there)))
    verdict: Verdict = "ok"
    advice = ""
    if free < LITTLE_SPACE:
        verdict = "note" if free >= _TOO_LITTLE else "problem"
        advice = f"free some space ('ckptkit cache prune'), or {_ANOTHER}"
    return Finding("cache", "free space", verdict, human_bytes(free), advice)


def _file_system(folder: Path) -> list[Finding]:
    """Whether locks exclude, and whether capitals count: tried in a temporary folder."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{TEMPORARY}doctor-") as name:
            tried = Path(name)
            return [_locks(tried / "lock"), _letters(tried)]
    except (OSError, CkptkitError) as error:
        text = str(error if isinstance(error, CkptkitError) else storage_error(error, folder))
        return [Finding("cache", "writing", "problem", text, _ANOTHER)]


def _locks(path: Path) -> Finding:
    with hold(path) as first, hold(path, wait=False) as second:
        if (first, second) == ("held", "taken"):
            return Finding("cache", "locks", "ok", "work")
    text = "this file system has no working locks, so two processes may download the same file twice"
    return Finding("cache", "locks", "note", text, f"{_ANOTHER}, on a local disk")


def _letters(folder: Path) -> Finding:
    (folder / "letters").touch()
    if (folder / "LETTERS").exists():
        text = "capital and small letters are the same in names here; no two ids differ by that alone"
        return Finding("cache", "names", "ok", text)
    return Finding("cache", "names", "ok", "capital and small letters differ")


def _size(folder: Path) -> str:
    """Size of everything in a folder, for people; what was counted in a few seconds."""
    total, ends = 0, time.monotonic() + _COUNTING_SECONDS
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(place, file), follow_symlinks=False).st_size  # noqa: PTH116, PTH118
            except OSError:  # gone meanwhile
                continue
        if time.monotonic() > ends:
            return f"more than {human_bytes(total)}"
    return human_bytes(total)


def examine_trust() -> Finding:
    """Look at the lock file of what was fetched before."""
    trust = LockFile.default()
    try:
        trust.files("")
    except CkptkitError as error:
        return Finding("cache", "lock file", "problem", error.message, error.hint or "")
    if not is_writable(trust.path.parent) or (trust.path.exists() and not os.access(trust.path, os.W_OK)):
        text = f"{trust.path} cannot be written, so checksums of new files are not remembered there"
        return Finding("cache", "lock file", "note", text, "set CKPTKIT_TRUST to another file")
    there = "" if trust.path.exists() else ", made with the first fetch"
    return Finding("cache", "lock file", "ok", f"{trust.path}{there}")


def examine_registries(overlays: Sequence[Path]) -> tuple[list[Finding], Registry | None]:
    """Load the registry files, each on top of those before it."""
    from ckptkit.families import registry_families
    from ckptkit.registry import load_texts, registry_files
    from ckptkit.registry.loading import read_text

    findings: list[Finding] = []
    texts: list[tuple[Path, str]] = []
    registry: Registry | None = None
    for path in registry_files(overlays):
        try:
            more = [*texts, (path, read_text(path))]
            loaded = load_texts(more, registry_families())
        except CkptkitError as error:
            findings.append(Finding("registry", path.name, "problem", error.message, error.hint or ""))
            continue
        added = len(loaded) - (len(registry) if registry is not None else 0)
        texts, registry = more, loaded
        entries = "1 entry" if added == 1 else f"{added} entries"
        findings.append(Finding("registry", path.name, "ok", f"{path}, {entries} of its own"))
    return findings, registry


_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_OURS = ("CKPTKIT_HOME", "CKPTKIT_REGISTRY", "CKPTKIT_TRUST")
_PLAIN = (
    *_OURS,
    *("NO_PROXY", "NETRC", "KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NO_COLOR"),
)


def examine_settings(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Variables that are set; proxies without user name and password, of tokens only that they are."""
    given = os.environ if environment is None else environment
    findings = [Finding("environment", name, "ok", given[name]) for name in _PLAIN if given.get(name)]
    findings += [_mirror(given[MIRROR])] if given.get(MIRROR, "").strip() else []
    for upper in _PROXIES:
        for name in (upper, upper.lower()):
            if given.get(name):
                findings.append(_proxy(name, given[name]))
    certificates = [name for name in CA_VARIABLES if given.get(name, "").strip()]
    findings += [_certificates(name, given[name], certificates[0]) for name in certificates]
    tokens = sorted(set(TOKEN_HOSTS.values()))
    findings += [_token(name, given[name]) for name in tokens if given.get(name)]
    findings += [_unknown(name) for name in sorted(given) if _is_unknown(name)]
    return findings or [Finding("environment", "variables", "ok", "none of the relevant variables is set")]


def masked(address: str) -> str:
    """A proxy's address without what would let others use it.

    Examples
    --------
    >>> masked("http://me:secret@proxy.example.org:3128"), masked("me:secret@proxy:3128"), masked("a:3128")
    ('http://***@proxy.example.org:3128', '***@proxy:3128', 'a:3128')
    """
    scheme, separator, rest = address.rpartition("://")
    login, at, host = rest.rpartition("@")
    del login
    return f"{scheme}{separator}{'***@' if at else ''}{host}"


def _mirror(rules: str) -> Finding:
    try:
        parsed = parse_mirrors((), rules)
    except CkptkitError as error:
        return Finding("environment", MIRROR, "problem", error.message, error.hint or "")
    text = "; ".join(f"{without_secrets(rule.origin)} from {without_secrets(rule.target)}" for rule in parsed)
    return Finding("environment", MIRROR, "ok", text)


def _proxy(name: str, value: str) -> Finding:
    if value.lower().startswith("socks") and importlib.util.find_spec("socks") is None:
        text = f"{masked(value)}: a SOCKS proxy, which needs a package that is not installed"
        return Finding("environment", name, "problem", text, install_command("pysocks"))
    return Finding("environment", name, "ok", masked(value))


def _certificates(name: str, value: str, first: str) -> Finding:
    if name != first:
        return Finding("environment", name, "ok", f"{value}, not used: {first} comes first")
    if any(path and Path(path).exists() for path in value.strip().split(os.pathsep)):
        return Finding("environment", name, "ok", value)
    text = f"{value} does not exist, so nothing can be fetched over https"
    return Finding("environment", name, "problem", text, f"unset {name}, or set it to a file of certificates")


def _is_unknown(name: str) -> bool:
    """Whether somebody meant one of ckptkit's variables and wrote another."""
    return name.startswith("CKPTKIT_") and name not in (*_OURS, MIRROR)


def _unknown(name: str) -> Finding:
    known = ", ".join((*_OURS, MIRROR))
    return Finding("environment", name, "note", "not a variable that ckptkit reads", f"it knows {known}")


def _token(name: str, value: str) -> Finding:
    if value.strip().isascii() and value.strip().isprintable() and " " not in value.strip():
        return Finding("environment", name, "ok", "set")
    return Finding("environment", name, "note", "set, but not a valid token; ignored", f"set {name} again")


GITHUB_API = "https://api.github.com"
PATIENCE = Policy(
    connect_timeout=5.0,
    read_timeout=5.0,
    head_seconds=5.0,
    credentials=Credentials({"NETRC": os.devnull}, token_hosts={}),
)
"""For a front page nobody needs to say who they are, so no token and no password is sent."""
HOST_SECONDS = 12.0
"""How long all hosts together may take: an answer that trickles keeps within the timeouts of each step."""


_PLURALS = {
    "file": "files",
    "file by hand": "files by hand",
    "log": "logs",
    "configuration": "configurations",
}


@dataclass
class Host:
    """One place that addresses of the registry lead to."""

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


def hosts_of(entries: Mapping[str, Entry], mirrors: Sequence[Mirror] = ()) -> list[Host]:
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


def _addresses(entries: Mapping[str, Entry]) -> Iterator[tuple[str, str]]:
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
    seconds: float = HOST_SECONDS,
    advance: Callable[[int], object] = lambda _step: None,
) -> list[Finding]:
    """Ask every host at the same time; one that takes too long counts as not answering."""
    asked = [host for host in hosts if urlsplit(host.origin).scheme in ("http", "https")]
    answers: queue.SimpleQueue[tuple[str, Answer]] = queue.SimpleQueue()
    for host in asked:
        # Daemons: one that hangs in a name lookup must not keep the process from ending.
        threading.Thread(target=_ask_host_for, args=(host.origin, policy, answers), daemon=True).start()
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


def _ask_host_for(origin: str, policy: Policy, answers: queue.SimpleQueue[tuple[str, Answer]]) -> None:
    try:
        answer = ask_host(origin, policy)
    except (
        Exception
    ) as error:  # in a thread of its own nobody would see it, and the host is merely not reached
        answer = Answer(False, f"failed: {type(error).__name__}")
    answers.put((origin, answer))


def ask_host(origin: str, policy: Policy = PATIENCE) -> Answer:
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


def _refusal(text: str) -> Answer:
    """An HTTP answer that is none a fetch could use."""
    if text.startswith("407"):
        return Answer(
            False, f"blocked by the proxy: {text}", "give the proxy's user name and password in its URL"
        )
    return Answer(True, f"reachable, answers {text}" if text[:1].isdigit() else f"reachable ({text})")


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


PROBE_SECONDS = 40.0
"""How long a framework may take: TensorFlow's first import from a slow disk takes half a minute."""
_MOST_OUTPUT = 1 << 20
_NONE = "no GPU; models run on the processor"

_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] \
    if torch.cuda.is_available() else []
if not names and torch.backends.mps.is_available():
    names = ["Apple GPU (mps)"]
built = torch.version.cuda or getattr(torch.version, "hip", None)
print("\\n" + json.dumps({"names": names, "built_for": built}))
"""
_TENSORFLOW = """
import json, tensorflow
found = tensorflow.config.list_physical_devices("GPU")
names = [tensorflow.config.experimental.get_device_details(one).get("device_name", one.name) for one in found]
built = "CUDA" if tensorflow.test.is_built_with_cuda() else None
print("\\n" + json.dumps({"names": names, "built_for": built}))
"""


@dataclass(frozen=True)
class ProbeReply:
    """What a process left."""

    code: int | None
    out: str
    err: str


def probe(arguments: Sequence[str], seconds: float) -> ProbeReply:
    """Run a process for so long at most; the exit code is None where it had to be ended."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUTF8": "1"}
    process = subprocess.Popen(  # noqa: S603 (Python and nvidia-smi, with arguments of our own)
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=os.name != "nt",
    )
    code: int | None
    try:
        out, err = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        _end(process)
        out, err, code = b"", b"", None
    return ProbeReply(code, _text(out), _text(err))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, without waiting for pipes that somebody else may hold."""
    with contextlib.suppress(OSError):
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=1)


def _text(output: bytes) -> str:
    return output[-_MOST_OUTPUT:].decode("utf-8", "replace")


def driver() -> Finding:
    """What NVIDIA's driver sees."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("devices", "NVIDIA driver", "ok", "not installed: " + _NONE)
    try:
        reply = probe([tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], 15.0)
    except OSError as error:
        reply = ProbeReply(126, "", str(error))
    lines = [line.strip() for line in reply.out.splitlines() if line.strip()]
    if reply.code == 0 and lines:
        return Finding("devices", "NVIDIA driver", "ok", "; ".join(lines[:8]))
    why = "timed out" if reply.code is None else _last_line(reply.err + reply.out)
    return Finding(
        "devices", "NVIDIA driver", "note", f"nvidia-smi: {why}", "check the driver's installation"
    )


def framework(package: str, seconds: float = PROBE_SECONDS) -> Finding | None:
    """What a framework sees; None where it is not installed."""
    if not _is_installed(package):
        return None
    code = {"torch": _TORCH, "tensorflow": _TENSORFLOW}[package]
    reply = probe([sys.executable, "-c", code], seconds)
    if reply.code is None:
        return Finding(
            "devices", package, "note", f"gave no answer within {seconds:.0f} s", _reinstall(package)
        )
    if reply.code != 0:
        why = _last_line(reply.err) or f"ended with {reply.code}"
        return Finding("devices", package, "note", f"cannot be imported: {why}", _reinstall(package))
    try:
        found = json.loads(reply.out.strip().splitlines()[-1])
        names, built_for = [str(name) for name in found["names"]], found["built_for"]
    except (ValueError, LookupError, TypeError):
        return Finding("devices", package, "note", "gave an answer that cannot be read", _reinstall(package))
    if names:
        return Finding("devices", package, "ok", "; ".join(names))
    return Finding("devices", package, "ok", _NONE + ("" if built_for else " (built without GPU support)"))


def questions() -> list[Callable[[], Finding | None]]:
    """Every question about devices, to be asked at the same time."""
    return [driver, lambda: framework("torch"), lambda: framework("tensorflow")]


def compared(findings: Sequence[Finding]) -> list[Finding]:
    """The same findings; a framework that sees none of the driver's GPUs becomes a note."""
    seen = next((one for one in findings if one.name == "NVIDIA driver"), None)
    has_gpu = seen is not None and seen.verdict == "ok" and _NONE not in seen.said
    return [
        Finding(
            "devices", one.name, "note", f"does not see the GPU that the driver sees: {one.said}", _cuda(one)
        )
        if has_gpu and one is not seen and one.said.startswith(_NONE)
        else one
        for one in findings
    ]


def _cuda(one: Finding) -> str:
    how = (
        "pip install 'tensorflow[and-cuda]'"
        if one.name == "tensorflow"
        else "see pytorch.org for CUDA builds"
    )
    return f"{how}; check CUDA_VISIBLE_DEVICES"


def _reinstall(package: str) -> str:
    return f"try: python -c 'import {package}'; then pip install --force-reinstall {package}"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")
_LEAST_COLUMNS = 80


def examine_machine() -> list[Finding]:
    """Processors this process may use, and memory."""
    return [
        Finding("machine", "processors", "ok", _processors()),
        Finding("machine", "memory", "ok", _memory()),
    ]


def _processors() -> str:
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return f"{usable}" if usable == count else f"{usable} of {count}"


def _memory() -> str:
    """Memory in all and what is free, as far as the system reports."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            sizes[name] = int(value.split()[0]) * 1024
    if "MemTotal" in sizes:
        parts = [human_bytes(sizes["MemTotal"]), f"{human_bytes(sizes.get('MemAvailable', 0))} of it free"]
        return ", ".join([*parts, *_limit(sizes["MemTotal"])])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return human_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return "not known"


def _limit(total: int) -> list[str]:
    """What a container grants, where that is less than the machine has."""
    with contextlib.suppress(OSError, ValueError):
        granted = int(_CONTROL_GROUP.read_text(encoding="ascii"))
        return [f"{human_bytes(granted)} granted to this container"] if granted < total else []
    return []


def examine_terminal(
    stdout: TextIO | None = None, environment: Mapping[str, str] | None = None
) -> list[Finding]:
    """What the terminal can show."""
    stdout = sys.stdout if stdout is None else stdout
    given = os.environ if environment is None else environment
    encoding = (getattr(stdout, "encoding", None) or "").lower().replace("-", "")
    letters = Finding("terminal", "letters", "ok", "UTF-8")
    if encoding != "utf8":
        name = getattr(stdout, "encoding", None) or "an unknown encoding"
        text = f"{name}: signs such as × and – are written in plain letters or escaped"
        letters = Finding("terminal", "letters", "note", text, "set PYTHONUTF8=1, or a UTF-8 locale")
    if not stdout.isatty():
        return [Finding("terminal", "output", "ok", "no terminal: plain text, no colour"), letters]
    width = shutil.get_terminal_size().columns
    wide = Finding("terminal", "width", "ok", f"{width} columns")
    if width < _LEAST_COLUMNS:
        wide = Finding("terminal", "width", "note", f"{width} columns: tables are cut", "make it wider")
    return [_colour(given), wide, letters]


def _colour(given: Mapping[str, str]) -> Finding:
    if given.get("NO_COLOR"):
        return Finding("terminal", "colour", "ok", "none: NO_COLOR is set")
    if given.get("TERM", "") in ("", "dumb"):
        return Finding("terminal", "colour", "ok", f"none: TERM is {given.get('TERM') or 'not set'}")
    many = given.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    return Finding(
        "terminal", "colour", "ok", f"{'all colours' if many else 'colours'}, TERM={given['TERM']}"
    )
