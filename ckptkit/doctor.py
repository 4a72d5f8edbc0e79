"""What this machine has and lacks, as a list of checks; none changes anything.

What is quick is looked at one after the other; hosts and frameworks, which take long, all at once.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar, get_args
from urllib.parse import urlsplit

from ckptkit._version import DISTRIBUTION, __version__, strangers
from ckptkit.base.errors import CkptkitError
from ckptkit.base.files import TEMPORARY, storage_error
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
from ckptkit.base.packages import Requirement, install_command, is_installed, requirements
from ckptkit.base.text import counted, human_bytes
from ckptkit.base.urls import full_url, is_local, without_secrets
from ckptkit.registry.schema import Entry
from ckptkit.store.cache import KINDS
from ckptkit.store.lockfile import LockFile
from ckptkit.store.openers import open_http
from ckptkit.store.sources import ENVIRONMENT as MIRROR
from ckptkit.store.sources import Mirror, parse_mirrors, resolve

if TYPE_CHECKING:
    from ckptkit.registry.query import Registry

Verdict = Literal["ok", "optional", "note", "problem"]
Advance = Callable[[int], object]
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    section: str  # the heading it is under, which `examine` fills in
    name: str
    # A problem stops fetching, verifying and converting; a note is worth knowing; optional is not here
    verdict: Verdict
    detail: str
    hint: str = ""
    purpose: str = ""  # of an extra


def _maker(verdict: Verdict) -> Callable[..., Finding]:
    def make(name: str, detail: str, hint: str = "") -> Finding:
        return Finding("", name, verdict, detail, hint)

    return make


ok, optional, note, problem = _maker("ok"), _maker("optional"), _maker("note"), _maker("problem")


def _fault(name: str, error: CkptkitError) -> Finding:
    return problem(name, error.message, error.hint or "")


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
    probes = [_in_background(question) for question in questions()]
    registry_findings, registry = check_registries(registries)
    rules, wrong_rules = _mirror_rules(mirrors)

    def hosts() -> Iterable[Finding]:
        if offline:
            return [ok("hosts", "not asked: --offline is given")]
        return check_hosts(hosts_of(registry, rules), advance=advance) if registry is not None else []

    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", check_versions),
        ("packages", check_packages),
        ("extras", check_extras),
        ("cache", check_folders),
        ("cache", check_lock_file),
        ("registry", lambda: registry_findings),
        ("environment", check_environment),
        ("environment", lambda: wrong_rules),
        ("network", hosts),
        ("devices", lambda: compared(_answers(probes, advance))),
        ("machine", check_machine),
        ("terminal", lambda: check_terminal(stdout)),
    ]
    return Examination(
        tuple(replace(finding, section=section) for section, check in checks for finding in check())
    )


def _in_background(question: Callable[[], T]) -> futures.Future[T]:
    """Ask in a daemon thread: one that hangs in a name lookup must not keep the process from ending."""
    future: futures.Future[T] = futures.Future()

    def ask() -> None:
        try:
            future.set_result(question())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return future


# -- versions and packages -----------------------------------------------------------------------------------


def check_versions() -> Iterator[Finding]:
    """ckptkit, Python, the platform; others of its name that Python could import instead."""
    python = f"{platform.python_version()} ({platform.python_implementation()})"
    yield ok("ckptkit", __version__)
    for folder in strangers():
        yield problem(
            "name clash",
            f"{folder}: another project with the same import name and command",
            f"pip uninstall ckptkit; then install {DISTRIBUTION} again, as both have the same files",
        )
    this = Path(__file__).parent
    for place in dict.fromkeys(sys.path):
        other = Path(place or os.curdir, "ckptkit", "__init__.py")
        if other.is_file() and not other.samefile(this / "__init__.py"):
            hint = "remove one of them, or start Python in another folder"
            yield note("second copy", f"{other.parent}; this one is {this}", hint)
    yield ok("Python", f"{python}, {sys.executable}")
    yield ok("platform", platform.platform())


EXTRAS: Mapping[str, str] = {
    "torch": "PyTorch models",
    "tf": "Keras models",
    "image": "predict, cam, eval",
    "cam": "heat maps",
    "plot": "plot, drawn logs",
    "onnx": "ONNX graphs",
    "hub": "export --push",
    "orbax": "Orbax checkpoints",
    "zstd": ".tar.zst archives",
    "remote": "s3:// and others",
}
"""What each extra is for."""


def check_packages(needed: Sequence[Requirement] | None = None) -> list[Finding]:
    """What ckptkit always needs, in one line if all is well."""
    try:
        needed = requirements() if needed is None else needed
    except importlib.metadata.PackageNotFoundError:
        detail = "ckptkit runs without being installed, so which packages it supports is not known"
        return [note("metadata", detail, "pip install -e .")]
    base = [_package(one) for one in needed if not one.extra]
    wrong = [finding for finding in base if finding.verdict != "ok"]
    return [ok("always needed", f"{counted(len(base) - len(wrong), 'package')}, as supported"), *wrong]


def check_extras(needed: Sequence[Requirement] | None = None) -> Iterator[Finding]:
    """Each extra: the versions of its packages, or what is missing and how to install it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # which `check_packages` reports
        needed = requirements() if needed is None else needed
    extras: dict[str, list[Requirement]] = {}
    for one in needed or ():
        if one.extra:
            extras.setdefault(one.extra, []).append(one)
    for extra, packages in extras.items():
        found = list(map(_package, packages))
        wrong = [one for one, finding in zip(packages, found, strict=True) if finding.verdict != "ok"]
        verdict = max((finding.verdict for finding in found), key=get_args(Verdict).index)
        detail = ", ".join(f"{finding.name} {finding.detail}" for finding in found)
        detail = "not installed" if verdict == "optional" else detail
        again = "--force-reinstall " * any("itself is not there" in finding.detail for finding in found)
        hint = f"pip install {again}{' '.join(one.install_word for one in wrong)}" if wrong else ""
        yield Finding("", extra, verdict, detail, hint, EXTRAS.get(extra, extra))


def _package(one: Requirement) -> Finding:
    """Look for a package. Without an extra it is one that ckptkit cannot do without."""
    install = f"pip install {one.install_word}"
    if one.installed is None:
        return (optional if one.extra else problem)(one.name, "not installed", install)
    if not one.supports(one.installed):
        return note(one.name, f"{one.installed}, but {one.supported} is supported", install)
    if not is_installed(one.name):
        detail = f"{one.installed} is recorded, but the package itself is not there"
        return (note if one.extra else problem)(
            one.name, detail, f"pip install --force-reinstall {one.install_word}"
        )
    return ok(one.name, one.installed)


# -- cache and registry --------------------------------------------------------------------------------------

LITTLE_SPACE = 2_000_000_000
"""Bytes: the largest published files have some two gigabytes, unpacked once more."""
_TOO_LITTLE = 100_000_000
_COUNTING_SECONDS = 3.0
_ANOTHER = "set CKPTKIT_HOME to another folder"


def check_folders() -> Iterator[Finding]:
    """Each cache folder: there, writable, room, locks, capital letters."""
    first, *others = home_folders()
    yield from _home(first)
    yield from map(_shared, others)


def _home(folder: Path) -> Iterator[Finding]:
    """The folder that is written to."""
    if folder == NOWHERE:
        detail = "there is none, for no home folder is known (HOME is not set)"
        yield problem("folder", detail, "set CKPTKIT_HOME to a folder")
    elif folder.exists() and not folder.is_dir():
        yield problem("folder", f"{folder} is a file", _ANOTHER)
    elif not is_writable(folder):
        missing = "" if folder.exists() else " and is not there"
        hint = f"{_ANOTHER}, or change who may write there"
        yield problem("folder", f"{folder} cannot be written{missing}", hint)
    elif not folder.exists():
        yield ok("folder", f"{folder}, made when first needed")
        yield _space(folder)
    else:
        yield ok("folder", f"{folder}, holds {_size(folder)}")
        if closed := [name for name in (*KINDS, "locks") if not is_writable(folder / name)]:
            detail = (
                f"{folder} can be written, but not {', '.join(closed)} in it: entries go to the next folder"
            )
            hint = "list another folder after it in CKPTKIT_HOME, or have their owner run 'chmod -R g+w'"
            yield note("shared folder", detail, hint)
        yield _space(folder)
        yield from _file_system(folder)


def _shared(folder: Path) -> Finding:
    """A folder that is only read."""
    if not folder.is_dir():
        return note("shared folder", f"{folder} is not there", "check CKPTKIT_HOME")
    if not os.access(folder, os.R_OK | os.X_OK):
        return note("shared folder", f"{folder} cannot be read", "ask its owner for access")
    return ok("shared folder", f"{folder}, holds {_size(folder)}")


def _space(folder: Path) -> Finding:
    """Room on the disk, in the nearest folder that is there."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return note("free space", str(storage_error(error, existing)))
    if free >= LITTLE_SPACE:
        return ok("free space", human_bytes(free))
    little = note if free >= _TOO_LITTLE else problem
    hint = f"free some space ('ckptkit cache prune'), or {_ANOTHER}"
    return little("free space", human_bytes(free), hint)


def _file_system(folder: Path) -> list[Finding]:
    """Whether locks exclude, and whether capitals count: tried in a temporary folder."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{TEMPORARY}doctor-") as name:
            return [_locks(Path(name, "lock")), _letters(Path(name))]
    except OSError as error:
        return [_fault("writing", storage_error(error, folder))]
    except CkptkitError as error:
        return [_fault("writing", error)]


def _locks(path: Path) -> Finding:
    with hold(path) as first, hold(path, wait=False) as second:
        if (first, second) == ("held", "taken"):
            return ok("locks", "work")
    detail = "this file system has no working locks, so two processes may download the same file twice"
    return note("locks", detail, f"{_ANOTHER}, on a local disk")


def _letters(folder: Path) -> Finding:
    (folder / "letters").touch()
    if (folder / "LETTERS").exists():
        return ok("names", "capital and small letters are the same here; no two ids differ by that alone")
    return ok("names", "capital and small letters differ")


def _size(folder: Path) -> str:
    """Size of everything in a folder, for people; what was counted in a few seconds."""
    total, end = 0, time.monotonic() + _COUNTING_SECONDS
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += os.lstat(os.path.join(place, file)).st_size  # noqa: PTH118
        if time.monotonic() > end:
            return f"more than {human_bytes(total)}"
    return human_bytes(total)


def check_lock_file() -> list[Finding]:
    """The record of what was fetched before."""
    lock = LockFile.default()
    path = lock.path
    try:
        lock.files("")
    except CkptkitError as error:
        return [_fault("lock file", error)]
    if not is_writable(path.parent) or (path.exists() and not os.access(path, os.W_OK)):
        detail = f"{path} cannot be written, so checksums of new files are not remembered there"
        return [note("lock file", detail, "set CKPTKIT_TRUST to another file")]
    return [ok("lock file", f"{path}" if path.exists() else f"{path}, made with the first fetch")]


def check_registries(overlays: Sequence[Path]) -> tuple[list[Finding], Registry | None]:
    """Load the registry files, each on top of those before it."""
    from ckptkit.families.base import registry_families
    from ckptkit.registry.loading import load_texts, read_text, registry_files

    findings: list[Finding] = []
    texts: list[tuple[Path, str]] = []
    registry: Registry | None = None
    for path in registry_files(overlays):
        try:
            more = [*texts, (path, read_text(path))]
            loaded = load_texts(more, registry_families())
        except CkptkitError as error:
            findings.append(_fault(path.name, error))
            continue
        added = len(loaded) - len(registry or ())
        texts, registry = more, loaded
        own = counted(added, "entry")
        findings.append(ok(path.name, f"{path}, {own} of its own"))
    return findings, registry


# -- environment ---------------------------------------------------------------------------------------------

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_OURS = ("CKPTKIT_HOME", "CKPTKIT_REGISTRY", "CKPTKIT_TRUST")
_PLAIN = (
    *_OURS,
    *("NO_PROXY", "NETRC", "KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("NO_COLOR", "FORCE_COLOR"),
)


def check_environment(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Variables that are set; proxies without user name and password, of tokens only that they are."""
    given = {
        name: value
        for name, value in (os.environ if environment is None else environment).items()
        if value.strip()
    }
    first_certificates = next((name for name in CA_VARIABLES if name in given), "")
    unknown = [name for name in sorted(given) if name.startswith("CKPTKIT_") and name not in (*_OURS, MIRROR)]
    checks: dict[str, Callable[[str, str], Finding]] = {
        **dict.fromkeys(_PLAIN, ok),
        MIRROR: _mirror,
        **dict.fromkeys((name for upper in _PROXIES for name in (upper, upper.lower())), _proxy),
        **dict.fromkeys(CA_VARIABLES, partial(_certificates, first_certificates)),
        **dict.fromkeys(sorted(TOKEN_HOSTS.values()), _token),
        **dict.fromkeys(unknown, _unknown),
    }
    findings = [check(name, given[name]) for name, check in checks.items() if name in given]
    return findings or [ok("variables", "none of the relevant variables is set")]


def _mirror_rules(mirrors: Sequence[str]) -> tuple[tuple[Mirror, ...], list[Finding]]:
    """The mirror rules of the command line and the environment, and what is wrong with the former."""
    rules: tuple[Mirror, ...] = ()
    findings = []
    try:
        rules = parse_mirrors(mirrors, "")
    except CkptkitError as error:
        findings = [_fault("mirrors", error)]
    with contextlib.suppress(CkptkitError):  # reported with the variable
        rules += parse_mirrors(())
    return rules, findings


def _mirror(name: str, rules: str) -> Finding:
    try:
        parsed = parse_mirrors((), rules)
    except CkptkitError as error:
        return _fault(name, error)
    return ok(
        name, "; ".join(f"{without_secrets(one.origin)} from {without_secrets(one.target)}" for one in parsed)
    )


def masked(address: str) -> str:
    """A proxy's address without what would let others use it.

    Examples
    --------
    >>> masked("http://me:secret@proxy.example.org:3128"), masked("me:secret@proxy:3128"), masked("a:3128")
    ('http://***@proxy.example.org:3128', '***@proxy:3128', 'a:3128')
    """
    scheme, separator, rest = address.rpartition("://")
    _login, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{'***@' if at else ''}{host}"


def _proxy(name: str, value: str) -> Finding:
    if value.lower().startswith("socks") and importlib.util.find_spec("socks") is None:
        detail = f"{masked(value)}: a SOCKS proxy, which needs a package that is not installed"
        return problem(name, detail, install_command("pysocks"))
    return ok(name, masked(value))


def _certificates(first: str, name: str, value: str) -> Finding:
    if name != first:
        return ok(name, f"{value}, not used: {first} comes first")
    if any(path and Path(path).exists() for path in value.strip().split(os.pathsep)):
        return ok(name, value)
    detail = f"{value} does not exist, so nothing can be fetched over https"
    return problem(name, detail, f"unset {name}, or set it to a file of certificates")


def _token(name: str, value: str) -> Finding:
    token = value.strip()
    if token.isascii() and token.isprintable() and " " not in token:
        return ok(name, "set")
    return note(name, "set, but not a valid token; ignored", f"set {name} again")


def _unknown(name: str, _value: str) -> Finding:
    return note(name, "not a variable that ckptkit reads", f"choose from {', '.join((*_OURS, MIRROR))}")


# -- network -------------------------------------------------------------------------------------------------

GITHUB_API = "https://api.github.com"
PATIENCE = Policy(
    connect_timeout=5.0,
    read_timeout=5.0,
    head_seconds=5.0,
    credentials=Credentials({"NETRC": os.devnull}, token_hosts={}),
)
"""A front page needs no login, so no token and no password is sent."""
HOST_SECONDS = 12.0
"""How long all hosts together may take: an answer that trickles keeps within the timeouts of each step."""
_NETWORK = "check the network, the proxy, the firewall"


@dataclass
class Host:
    """One place that URLs of the registry lead to."""

    origin: str
    uses: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """Host, and port where one is given."""
        return urlsplit(self.origin).netloc or self.origin

    @property
    def purpose(self) -> str:
        """What it is for, such as ``36 files, 1 file by hand``."""
        return ", ".join(_use(count, *what.split(" ", 1)) for what, count in self.uses.items())


def _use(count: int, noun: str, *how: str) -> str:
    return " ".join([counted(count, noun) if count else noun, *how])


def hosts_of(entries: Mapping[str, Entry], mirrors: Sequence[Mirror] = ()) -> list[Host]:
    """The places that the URLs of entries lead to, after the mirror rules."""
    hosts: dict[str, Host] = {}
    for what, address in _addresses(entries):
        # A person goes to a page by hand, and no configuration is fetched: no mirror counts there.
        url = full_url(address)
        used = resolve(url, mirrors) if what in ("file", "log") else url
        parts = urlsplit(used)
        host = parts.netloc.rpartition("@")[2]
        origin = "file://" if is_local(used) else f"{parts.scheme.lower()}://{host}"
        hosts.setdefault(origin, Host(origin)).uses[what] += 1
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


def check_hosts(
    hosts: Sequence[Host],
    *,
    policy: Policy = PATIENCE,
    seconds: float = HOST_SECONDS,
    advance: Advance = lambda _step: None,
) -> list[Finding]:
    """Ask every host at the same time; one that takes too long counts as not answering."""
    asked = {
        host.origin: _in_background(partial(ask_host, host.origin, policy))
        for host in hosts
        if host.origin.startswith(("http:", "https:"))
    }
    with contextlib.suppress(futures.TimeoutError):
        for _ in futures.as_completed(asked.values(), seconds):
            advance(1)
    late = note("", f"timeout: no answer within {seconds:g} s", _NETWORK)
    answers = {origin: future.result() if future.done() else late for origin, future in asked.items()}
    sources = [host.origin for host in hosts if "file" in host.uses and host.origin in answers]
    cut_off = not any(answers[origin].verdict == "ok" for origin in sources)
    findings = []
    for host in hosts:
        where = "on this machine" if host.origin == "file://" else "an object store, not asked here"
        answer = answers.get(host.origin, ok("", where))
        verdict: Verdict = "problem" if cut_off and host.origin in sources else answer.verdict
        detail = f"{answer.detail} ({host.purpose})"
        findings.append(replace(answer, name=host.name, verdict=verdict, detail=detail))
    return findings


def ask_host(origin: str, policy: Policy = PATIENCE) -> Finding:
    """Ask a host for its front page, without reading it; with any answer of its own it is reachable."""
    try:
        with contextlib.closing(Session(policy)) as session, open_http(session, f"{origin}/"):
            return ok(origin, "reachable")
    except SourceGoneError:
        return ok(origin, "reachable")
    except CkptkitError as error:  # a package or a file that the environment names is missing
        return note(origin, error.message, error.hint or "")
    except (SourceError, PassingError, RangeError) as error:
        return _refusal(origin, str(error)) if error.__cause__ is None else _failure(origin, error.__cause__)
    except Exception as error:  # whatever it is, the host is merely not reached
        return note(origin, f"failed: {type(error).__name__}")


def _refusal(origin: str, answer: str) -> Finding:
    """An HTTP answer that a fetch could not use."""
    if answer.startswith("407"):
        hint = "give the proxy's user name and password in its URL"
        return note(origin, f"blocked by the proxy: {answer}", hint)
    return ok(origin, f"reachable, answers {answer}" if answer[:1].isdigit() else f"reachable ({answer})")


def _failure(origin: str, error: BaseException) -> Finding:
    """What went wrong below HTTP, by the first kind of error that the chain of causes has."""
    from requests import exceptions

    certificate = f"where a proxy opens TLS connections, {CA_VARIABLES[0]} names its certificate"
    kinds: list[tuple[type[BaseException], str, str]] = [
        (exceptions.SSLError, "TLS failure: {}", certificate),
        (exceptions.ProxyError, "blocked by the proxy: {}", "check HTTPS_PROXY and NO_PROXY"),
        (exceptions.Timeout, "timeout: no answer", _NETWORK),
        (socket.gaierror, "could not resolve its name", "check the network and its DNS servers"),
        (
            ConnectionRefusedError,
            "refused: no server listens there",
            "check the address, the firewall, the mirror",
        ),
        (BaseException, "connection failed: {}", "check the network and the firewall"),
    ]
    chain = list(_chain(error))
    detail, hint = next(words for kind, *words in kinds if any(isinstance(one, kind) for one in chain))
    return note(origin, detail.format(" ".join(str(chain[-1]).split())[:160]), hint)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from, the innermost last."""
    current: BaseException | None = error
    for _ in range(12):
        if not isinstance(current, BaseException):
            return
        yield current
        inner = [getattr(current, "reason", None), *current.args]
        causes = [one for one in inner if isinstance(one, BaseException)]
        current = causes[0] if causes else current.__cause__ or current.__context__


# -- devices -------------------------------------------------------------------------------------------------

PROBE_SECONDS = 40.0
"""How long a framework may take: TensorFlow's first import from a slow disk takes half a minute."""
_MOST_OUTPUT = 1 << 20
_NO_GPU = "no GPU; models run on the processor"

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
import json, sys
sys.modules["matplotlib"] = None  # Keras takes it where it can, and it would write its list of fonts
import tensorflow
found = tensorflow.config.list_physical_devices("GPU")
names = [tensorflow.config.experimental.get_device_details(one).get("device_name", one.name) for one in found]
built = "CUDA" if tensorflow.test.is_built_with_cuda() else None
print("\\n" + json.dumps({"names": names, "built_for": built}))
"""


def questions() -> list[Callable[[], Finding | None]]:
    """Every question about devices, to be asked at the same time."""
    return [driver, partial(framework, "torch"), partial(framework, "tensorflow")]


def _answers(probes: Sequence[futures.Future[Finding | None]], advance: Advance) -> list[Finding]:
    """Wait for all probes, each of which has a time limit of its own."""
    findings = []
    for probed in probes:
        try:
            findings.append(probed.result())
        except OSError as error:  # no process can be started
            findings.append(note("processes", f"cannot be started: {error.strerror}"))
        advance(1)
    return [finding for finding in findings if finding is not None]


def driver() -> Finding:
    """What NVIDIA's driver sees."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ok("NVIDIA driver", f"not installed: {_NO_GPU}")
    try:
        reply = probe([tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], 15.0)
        lines = _lines(reply.stdout)
        if reply.returncode == 0 and lines:
            return ok("NVIDIA driver", "; ".join(lines[:8]))
        why = _last_line(reply.stderr + reply.stdout)[:200]
    except subprocess.TimeoutExpired:
        why = "timed out"
    except OSError as error:
        why = str(error)
    return note("NVIDIA driver", f"nvidia-smi: {why}", "check the driver's installation")


def framework(package: str, seconds: float = PROBE_SECONDS) -> Finding | None:
    """What a framework sees; None where it is not installed."""
    if not is_installed(package):
        return None
    try:
        reply = probe([sys.executable, "-c", {"torch": _TORCH, "tensorflow": _TENSORFLOW}[package]], seconds)
        if reply.returncode == 0:
            found = json.loads(_last_line(reply.stdout))
            if found["names"]:
                return ok(package, "; ".join(map(str, found["names"])))
            return ok(package, _NO_GPU + ("" if found["built_for"] else " (built without GPU support)"))
        why = f"cannot be imported: {_last_line(reply.stderr)[:200] or f'ended with {reply.returncode}'}"
    except subprocess.TimeoutExpired:
        why = f"gave no answer within {seconds:.0f} s"
    except (ValueError, LookupError, TypeError):
        why = "gave an answer that cannot be read"
    hint = f"try: python -c 'import {package}'; then pip install --force-reinstall {package}"
    return note(package, why, hint)


def compared(findings: Sequence[Finding]) -> list[Finding]:
    """The same findings; a framework that sees none of the driver's GPUs becomes a note."""
    seen = next((one for one in findings if one.name == "NVIDIA driver"), None)
    if seen is None or seen.verdict != "ok" or _NO_GPU in seen.detail:
        return list(findings)
    return [_blind(one) if one.detail.startswith(_NO_GPU) else one for one in findings]


def _blind(one: Finding) -> Finding:
    tensorflow = one.name == "tensorflow"
    how = "pip install 'tensorflow[and-cuda]'" if tensorflow else "see pytorch.org for CUDA builds"
    detail = f"does not see the GPU that the driver sees: {one.detail}"
    return note(one.name, detail, f"{how}; check CUDA_VISIBLE_DEVICES")


def probe(arguments: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a process; after a time limit end it with what it started, and raise `TimeoutExpired`."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUTF8": "1"}
    process = subprocess.Popen(  # noqa: S603 (Python and nvidia-smi, with arguments of our own)
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=os.name != "nt",
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            process.kill() if os.name == "nt" else os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # another process may hold the pipes
            process.communicate(timeout=1)
        raise
    text = [output[-_MOST_OUTPUT:].decode("utf-8", "replace") for output in (out, err)]
    return subprocess.CompletedProcess(arguments, process.returncode, *text)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _last_line(text: str) -> str:
    return (_lines(text) or [""])[-1]


# -- machine and terminal ------------------------------------------------------------------------------------

_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")
_LEAST_COLUMNS = 80


def check_machine() -> list[Finding]:
    """Processors this process may use, and memory."""
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return [
        ok("processors", f"{usable}" if usable == count else f"{usable} of {count}"),
        ok("memory", ", ".join(_memory()) or "not known"),
    ]


def _memory() -> Iterator[str]:
    """Total and free memory, and what a container grants, as far as the system reports."""
    total = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield human_bytes(total)
    with contextlib.suppress(OSError, LookupError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        yield f"{human_bytes(int(available.split()[1]) * 1024)} of it free"
    with contextlib.suppress(OSError, ValueError):
        granted = int(_CONTROL_GROUP.read_text(encoding="ascii"))
        if granted < total:
            yield f"{human_bytes(granted)} granted to this container"


def check_terminal(
    stdout: TextIO | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """What the terminal can show."""
    stdout = sys.stdout if stdout is None else stdout
    given = os.environ if environment is None else environment
    encoding = getattr(stdout, "encoding", None) or "an unknown encoding"
    if stdout.isatty():
        width = shutil.get_terminal_size().columns
        yield ok("colour", _colour(given))
        if width < _LEAST_COLUMNS:
            yield note("width", f"{counted(width, 'column')}: tables are cut", "make it wider")
        else:
            yield ok("width", counted(width, "column"))
    else:
        forced = given.get("FORCE_COLOR") and not given.get("NO_COLOR")
        yield ok("output", f"no terminal: plain text, {'in colour' if forced else 'no colour'}")
    if encoding.lower().replace("-", "") == "utf8":
        yield ok("letters", "UTF-8")
    else:
        detail = f"{encoding}: signs such as × and – are written in plain letters or escaped"
        yield note("letters", detail, "set PYTHONUTF8=1, or a UTF-8 locale")


def _colour(given: Mapping[str, str]) -> str:
    if given.get("NO_COLOR"):
        return "none: NO_COLOR is set"
    if given.get("TERM", "") in ("", "dumb"):
        return f"none: TERM is {given.get('TERM') or 'not set'}"
    many = given.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    return f"{'all colours' if many else 'colours'}, TERM={given['TERM']}"
