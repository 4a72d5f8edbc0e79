"""Parameters and multiply-adds of a model, module by module, and beside the published figures.

The model runs on PyTorch's meta device, where tensors have shapes and no elements: this takes neither weights
nor memory for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from ckptkit.analysis.runner import hooked
from ckptkit.base.errors import NotFoundError, UsageError, choose_from
from ckptkit.base.parse import Size, parse_count, parse_num_classes, parse_size
from ckptkit.base.shown import Column, Piece, Shown, Table
from ckptkit.base.text import counted
from ckptkit.compare.verify import rounds_to
from ckptkit.families.base import (
    CANONICAL,
    Family,
    Structure,
    families,
    family_of_variant,
    get_family,
)
from ckptkit.families.flops import Call, Convention, Shape

if TYPE_CHECKING:
    from ckptkit.registry.query import Registry
    from ckptkit.registry.schema import Entry, KnownDeviation


@dataclass
class Count:
    """Calls of one operation in one module, and their multiply-adds."""

    calls: int = 0
    products: Fraction = Fraction(0)  # of convolutions, linear layers and attention products alone
    multiply_adds: Fraction = Fraction(0)  # all of them by the convention

    def add(self, other: Count) -> None:
        """Add another count to this one."""
        self.calls += other.calls
        self.products += other.products
        self.multiply_adds += other.multiply_adds


@dataclass
class Tally:
    """What a forward pass of one image costs."""

    # By module, as ``named_modules`` calls it, and operation: what runs in the module itself and in none of
    # the modules within it
    counts: dict[tuple[str, str], Count]
    uncounted: dict[str, int]  # calls of operations that the convention says nothing about

    def record(self, module: str, call: Call, convention: Convention) -> None:
        """Add one call."""
        cost = convention.cost(call)
        if cost is None:
            self.uncounted[call.operation] = self.uncounted.get(call.operation, 0) + 1
            return
        if cost[1]:
            self.counts.setdefault((module, call.operation), Count()).add(Count(1, *cost))


def count_forward(model: Any, size: tuple[int, int], convention: Convention) -> Tally:
    """Run a model of this package once and count."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    tally = Tally({}, {})
    path = [""]

    class Counting(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed here
        """Sees every operation after PyTorch has broken it down to its basic ones."""

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operation(*args, **(kwargs or {}))
            tally.record(path[-1], _call(operation, args, result), convention)
            return result

    # Without gradients rather than in inference mode, which hands over layers that are not broken down yet.
    with torch.no_grad(), _following(model, path), Counting():
        image = torch.empty((1, 3, *size), device="meta")
        outputs = model.forward_stages(image)
        if convention.activates_stage_outputs:
            outputs.pop("logits", None)
            for output in outputs.values():
                torch.nn.functional.gelu(output)
    return tally


@contextmanager
def _following(model: Any, path: list[str]) -> Iterator[None]:
    """Keep the name of the module that runs at the end of ``path``."""
    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks += [
                module.register_forward_pre_hook(lambda *_, name=name: path.append(name)),
                module.register_forward_hook(lambda *_: _leave(path)),
            ]
    with hooked(hooks):
        yield


def _leave(path: list[str]) -> None:
    """Drop the last module; a hook that returned it would replace the module's result."""
    path.pop()


def _call(operation: Any, args: tuple[Any, ...], result: Any) -> Call:
    """Describe a call by its shapes."""
    first = result[0] if isinstance(result, (tuple, list)) else result
    name = operation.overloadpacket.__name__
    return Call(
        operation=name.rstrip("_"),
        inputs=tuple(_shape(arg) for arg in args),
        arguments=tuple(None if _shape(arg) is not None else arg for arg in args),
        output=_shape(first) or (),
    )


def _shape(value: Any) -> Shape | None:
    """Shape of a tensor, None of anything else."""
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


REST = "(rest)"
"""Name of the row of what a module has and does outside the modules within it."""


@dataclass(frozen=True)
class ModuleProfile:
    """One module with everything inside it."""

    name: str  # as ``named_modules`` calls it
    type: str  # its class
    parameters: int
    products: Fraction  # for one image, all modules inside included
    multiply_adds: Fraction
    # The modules inside, and, where the module has parameters or does something itself, a last one called
    # ``(rest)``: so children always add up to their parent
    children: tuple[ModuleProfile, ...] = field(default=())

    def rows(self, depth: int, level: int = 0) -> Iterator[tuple[int, ModuleProfile]]:
        """Yield this module and those inside down to ``depth`` levels below the model."""
        yield level, self
        if level < depth:
            for child in self.children:
                yield from child.rows(depth, level + 1)

    def to_json(self, depth: int | None = None) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes, down to ``depth`` levels (None: all)."""
        values: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "parameters": self.parameters,
            "products": number(self.products),
            "multiply_adds": number(self.multiply_adds),
        }
        if self.children and depth != 0:
            below = None if depth is None else depth - 1
            values["modules"] = [child.to_json(below) for child in self.children]
        return values


def number(value: Fraction) -> int | float:
    """Plain number of a count: an integer where it is one.

    >>> number(Fraction(6, 2)), number(Fraction(5, 2))
    (3, 2.5)
    """
    return value.numerator if value.denominator == 1 else float(value)


def module_tree(model: Any, tally: Tally) -> ModuleProfile:
    """Distribute a tally over a model's modules."""
    own: dict[str, Count] = {}
    for (module, _), count in tally.counts.items():
        own.setdefault(module, Count()).add(count)
    return _branch(model, "", own)


def _branch(module: Any, name: str, own: dict[str, Count]) -> ModuleProfile:
    inside = tuple(_branch(child, path, own) for path, child in _children(module, name))
    count = own.get(name, Count())
    parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    children = inside
    if inside and (parameters or count.multiply_adds):
        rest = ModuleProfile(REST, "", parameters, count.products, count.multiply_adds)
        children = (*inside, rest)
    return ModuleProfile(
        name=name,
        type=_type(module),
        parameters=parameters + sum(child.parameters for child in inside),
        products=count.products + sum((child.products for child in inside), Fraction(0)),
        multiply_adds=count.multiply_adds + sum((child.multiply_adds for child in inside), Fraction(0)),
        children=children,
    )


def _children(module: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Modules directly inside, with their full names; a list of lists gives its lists."""
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if _is_list(child) and all(_is_list(inner) for inner in child):
            yield from _children(child, path)
        else:
            yield path, child


def _type(module: Any) -> str:
    """Class of a module, or what a list is a list of."""
    classes = {type(child).__name__ for child in module.children()}
    if _is_list(module) and len(classes) == 1:
        return f"{len(module)} × {classes.pop()}"
    return type(module).__name__


def _is_list(module: Any) -> bool:
    return type(module).__name__ == "ModuleList"


@dataclass(frozen=True)
class Subject:
    """What is counted: everything that the numbers of a profile depend on."""

    family: str
    variant: str
    resolution: Size  # height and width in pixels
    num_classes: int | None  # outputs of the head, None for none
    pos_emb: bool | None  # whether attention has position tables
    # The family's behaviour settings, except those the family's convention does not see
    settings: tuple[tuple[str, Any], ...]

    @property
    def convention(self) -> Convention:
        """How its family's publication counts."""
        return convention_of(get_family(self.family))


@dataclass(frozen=True)
class Profile:
    """What a model costs."""

    subject: Subject
    root: ModuleProfile  # the whole model, with its modules inside
    operations: Mapping[str, Count]  # of the whole model by PyTorch operation, those that cost something
    uncounted: Mapping[str, int]  # calls of operations that the convention says nothing about

    @property
    def parameters(self) -> int:
        """Trainable parameters, BatchNorm's statistics not among them."""
        return self.root.parameters

    @property
    def multiply_adds(self) -> Fraction:
        """For one image, by the convention."""
        return self.root.multiply_adds

    @property
    def products(self) -> Fraction:
        """Multiply-adds of convolutions, linear layers and attention products alone."""
        return self.root.products

    def rows(self, depth: int) -> Iterator[tuple[int, ModuleProfile]]:
        """Modules down to a depth with their level, the model itself being level 0."""
        return self.root.rows(depth)

    def to_json(self, depth: int | None = None) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes, modules down to ``depth`` (None: all)."""
        subject = self.subject
        return {
            "family": subject.family,
            "variant": subject.variant,
            "resolution": list(subject.resolution),
            "num_classes": subject.num_classes,
            "pos_emb": subject.pos_emb,
            "settings": dict(subject.settings),
            "convention": {"name": subject.convention.name, "counts": subject.convention.counts},
            "parameters": self.parameters,
            "multiply_adds": number(self.multiply_adds),
            "products": number(self.products),
            "operations": {
                name: {"calls": count.calls, "multiply_adds": number(count.multiply_adds)}
                for name, count in self.operations.items()
            },
            "uncounted": dict(self.uncounted),
            "modules": self.root.to_json(depth),
        }


def convention_of(family: Family) -> Convention:
    """How a family's publication counts.

    >>> convention_of(get_family("moganet")).name
    'mmcv'
    """
    if family.flops is None:
        raise NotFoundError(
            f"how the figures of family {family.name!r} were counted is not known",
            hint=choose_from(name for name in families() if get_family(name).flops),
        )
    return family.flops


def subject_of(
    variant: str,
    family: Family,
    entry: Entry | None = None,
    *,
    resolution: int | Size | None = None,
    num_classes: int | None = 1000,
    pos_emb: bool | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Subject:
    """Put together what is to be counted: as requested, else the entry's, else a classifier's."""
    indifferent = convention_of(family).indifferent
    known = family.known_settings(given=settings, entry=entry)
    unseen = {key: value for key, value in indifferent.items() if key in family.required_settings}
    settled = family.resolve_settings({**unseen, **known}, name=entry.id if entry else variant)
    if resolution is None:
        resolution = (entry and entry.test_resolution) or family.default_resolution(variant)
    size = parse_size(resolution, "resolution")
    if pos_emb is not None and not family.has_pos_emb:
        raise UsageError(f"family {family.name} has no position embedding", hint="leave pos_emb out")
    if family.has_pos_emb and pos_emb is None:
        pos_emb = True if entry is None or entry.pos_emb is None else entry.pos_emb
    return Subject(
        family=family.name,
        variant=variant,
        resolution=size,
        num_classes=parse_num_classes(num_classes),
        pos_emb=pos_emb,
        settings=tuple((key, value) for key, value in settled.items() if key not in indifferent),
    )


def profile(subject: Subject) -> Profile:
    """Count one model.

    The model is built and run on PyTorch's meta device, so this takes neither weights nor memory for them.
    """
    model = _build(subject)
    tally = count_forward(model, subject.resolution, subject.convention)
    operations: dict[str, Count] = {}
    for (_, operation), count in tally.counts.items():
        operations.setdefault(operation, Count()).add(count)
    dearest = sorted(operations.items(), key=lambda item: -item[1].multiply_adds)
    root = replace(module_tree(model, tally), name=subject.variant)
    return Profile(subject, root, dict(dearest), tally.uncounted)


def _build(subject: Subject) -> Any:
    module = get_family(subject.family).torch_module()
    import torch

    position = {} if subject.pos_emb is None else {"pos_emb": subject.pos_emb}
    with torch.device("meta"):
        return module.build(
            subject.variant,
            resolution=subject.resolution,
            num_classes=subject.num_classes,
            **position,
            **{**subject.convention.indifferent, **dict(subject.settings)},
        )


FigureName = Literal["params", "flops"]
Verdict = Literal["exact", "close", "known", "off", "stale", "not compared"]

TOLERANCE = 0.02
"""Share of the published figure by which a count may differ from it."""

FAILING = frozenset({"off", "stale"})


@dataclass(frozen=True)
class FigureCheck:
    """One counted figure set against the published one."""

    figure: FigureName
    counted: float
    published: str | None  # as published
    verdict: Verdict  # ``exact``: it rounds to the published figure, at that figure's precision
    reason: str = ""  # what there is to say about the verdict

    @property
    def ok(self) -> bool:
        """Whether an audit may pass with it."""
        return self.verdict not in FAILING

    @property
    def exactly(self) -> str:
        """What was counted, in full."""
        return f"{self.counted:,.0f}" if self.figure == "params" else f"{self.counted / 1e9:.4f}G"

    @property
    def deviation(self) -> float | None:
        """What was counted over what was published, less 1."""
        return None if self.published is None else self.counted / parse_count(self.published) - 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "deviation": self.deviation, "ok": self.ok}


def check_figure(
    figure: FigureName, counted: float, published: str, known: KnownDeviation | None = None
) -> FigureCheck:
    """Set a count against a published figure.

    >>> check_figure("params", 27846892, "27.8M").verdict
    'exact'
    >>> check_figure("params", 2956066, "2.97M").verdict
    'close'
    >>> check_figure("params", 2956066, "3.05M").verdict
    'off'
    """
    if rounds_to(counted, published):
        if known is not None:
            reason = f"the registry lists a deviation, but this rounds to the published {published}"
            return FigureCheck(figure, counted, published, "stale", reason)
        return FigureCheck(figure, counted, published, "exact")
    if known is not None:
        return FigureCheck(figure, counted, published, "known", known.reason)
    value = parse_count(published)
    if abs(counted - value) <= TOLERANCE * value:
        return FigureCheck(figure, counted, published, "close")
    reason = f"{counted / value - 1:+.1%} off, and no known deviation"
    return FigureCheck(figure, counted, published, "off", reason)


FIGURES: tuple[FigureName, ...] = ("params", "flops")
FIGURE_LABELS = {"params": "parameters", "flops": "multiply-adds"}


@dataclass(frozen=True, repr=False)
class ProfileReport(Shown):
    """A profile beside the figures that were published of the same model."""

    name: str  # the id or variant
    profile: Profile
    entry: Entry | None  # whose figures stand beside it
    checks: tuple[FigureCheck, FigureCheck]  # of parameters, then of FLOPs

    @property
    def ok(self) -> bool:
        """Whether each figure that can be compared holds, and nothing was left uncounted."""
        return all(check.ok for check in self.checks) and not self.profile.uncounted

    @property
    def headline(self) -> str:
        """The result in one line."""
        figures = ", ".join(f"{check.exactly} {FIGURE_LABELS[check.figure]}" for check in self.checks)
        return f"{self.name}: {figures}"

    def pieces(self, depth: int = 1) -> Iterator[Piece]:
        """What was counted and how, the published figures, the table of modules down to a depth."""
        found, convention = self.profile, self.profile.subject.convention
        yield f"{self.name}: {_described(self)}"
        for check in self.checks:
            yield f"  {FIGURE_LABELS[check.figure]:<15}{check.exactly}, {_beside(check, self)}"
        yield f"  {'products alone':<15}{float(found.products) / 1e9:.4f}G"
        yield f"  {'counted by':<15}{convention.name}: {convention.counts}"
        columns = [Column("module"), Column("type")]
        columns += [Column(figure, numeric=True) for figure in ("parameters", "multiply-adds", "share")]
        yield Table(columns, [_row(level, module, found.root) for level, module in found.rows(depth)])

    def to_json(self, depth: int | None = None) -> dict[str, Any]:
        """Return plain values that `json.dumps` takes, modules down to ``depth`` (None: all)."""
        return {
            "name": self.name,
            "entry": self.entry.id if self.entry else None,
            "ok": self.ok,
            "checks": [check.to_json() for check in self.checks],
            **self.profile.to_json(depth),
        }

    def summary(self) -> dict[str, Any]:
        """The figures alone, as plain values."""
        return {
            "id": self.name,
            "ok": self.ok,
            "variant": self.profile.subject.variant,
            "resolution": list(self.profile.subject.resolution),
            "checks": [check.to_json() for check in self.checks],
            "uncounted": dict(self.profile.uncounted),
        }


def _described(report: ProfileReport) -> str:
    """What was built."""
    subject = report.profile.subject
    height, width = subject.resolution
    parts = [f"{subject.variant} at {height}×{width}"]
    if subject.pos_emb is not None:
        parts.append(f"{'with' if subject.pos_emb else 'without'} position embedding")
    parts.append(counted(subject.num_classes, "class") if subject.num_classes else "no head")
    return ", ".join(parts)


def _beside(check: FigureCheck, report: ProfileReport) -> str:
    """How the published figure compares, and whose it is where that is not obvious."""
    if check.published is None:
        return _verdict(check)
    whose = "" if report.entry is None or report.entry.id == report.name else f" of {report.entry.id}"
    return f"published {check.published}{whose}: {_verdict(check)}"


def _verdict(check: FigureCheck) -> str:
    if check.verdict == "close":
        return f"close, {check.deviation:+.1%}"
    return f"{check.verdict}: {check.reason}" if check.reason else check.verdict


def _row(level: int, module: ModuleProfile, root: ModuleProfile) -> list[str]:
    share = module.multiply_adds / root.multiply_adds if root.multiply_adds else 0
    return [
        "  " * level + module.name,
        module.type,
        f"{module.parameters:,}",
        f"{float(module.multiply_adds) / 1e9:.4f}G",
        f"{float(share):.1%}",
    ]


def profile_model(
    what: str | Entry,
    *,
    registry: Registry | None = None,
    resolution: int | Size | None = None,
    num_classes: int | None = 1000,
    pos_emb: bool | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ProfileReport:
    """Count a model's parameters and multiply-adds and set them beside the published figures.

    >>> report = profile_model("moganet-xt-224")
    >>> report.profile.parameters, f"{float(report.profile.multiply_adds):,.0f}"
    (2956066, '799,674,138')
    >>> [check.verdict for check in report.checks]
    ['known', 'exact']
    """
    if registry is None:
        from ckptkit.families.base import registry_families
        from ckptkit.registry.loading import load_registry

        registry = load_registry(families=registry_families)
    entry = registry.get(what) if isinstance(what, str) else what
    name = what if isinstance(what, str) else what.id
    if entry is not None and num_classes == _USUAL_CLASSES:
        num_classes = _published_classes(entry)
    if entry is not None and resolution is None:
        resolution = entry.flops_input
    family, variant = _family_and_variant(name, entry)
    subject = subject_of(
        variant,
        family,
        entry,
        resolution=resolution,
        num_classes=num_classes,
        pos_emb=pos_emb,
        settings=settings,
    )
    entry = entry or _fitting_entry(subject, registry)
    found = profile(subject)
    return ProfileReport(name, found, entry, _checks(found, entry))


def _family_and_variant(name: str, entry: Entry | None) -> tuple[Family, str]:
    if entry is not None:
        return get_family(entry.family), entry.variant
    try:
        return family_of_variant(name), name
    except NotFoundError as error:
        raise NotFoundError(
            f"unknown entry or variant {name!r}", hint=f"see 'ckptkit list'; {error.hint}"
        ) from error


def _fitting_entry(subject: Subject, registry: Registry) -> Entry | None:
    """Return the first entry of the same model, at the same resolution if there is one."""
    of_variant = [
        entry
        for entry in registry.values()
        if entry.serves == "whole"
        and entry.variant == subject.variant
        and entry.pos_emb in (None, subject.pos_emb)
    ]
    same_size = [e for e in of_variant if (e.test_resolution, e.test_resolution) == subject.resolution]
    return next(iter([*same_size, *of_variant]), None)


def audit_registry(
    entries: Iterable[Entry], *, advance: Callable[[int], None] = lambda _steps: None
) -> list[ProfileReport]:
    """Set the published parameters and FLOPs of entries against what their models cost.

    Entries of the same model at the same resolution are counted once.
    """
    counted: dict[str, Profile] = {}  # by the subject's text: settings may be lists, which have no hash
    reports = []
    for entry in entries:
        subject = _published_subject(entry)
        if repr(subject) not in counted:
            counted[repr(subject)] = profile(subject)
        found = counted[repr(subject)]
        reports.append(ProfileReport(entry.id, found, entry, _checks(found, entry)))
        advance(1)
    return reports


_USUAL_CLASSES = 1000


def _published_subject(entry: Entry) -> Subject:
    """What the figures of an entry are about, or as much of it as can be counted: its backbone."""
    family, size, classes = get_family(entry.family), entry.flops_input, _published_classes(entry)
    return subject_of(entry.variant, family, entry, resolution=size, num_classes=classes)


def _published_classes(entry: Entry) -> int | None:
    """Outputs of the head that is counted; None where only the backbone is known."""
    return None if entry.serves == "backbone" else entry.num_classes or _USUAL_CLASSES


def _checks(found: Profile, entry: Entry | None) -> tuple[FigureCheck, FigureCheck]:
    if entry is not None and entry.serves == "backbone":
        return _check_backbone(found, entry)
    return _check_parameters(found, entry), _check_flops(found, entry)


def _check_backbone(found: Profile, entry: Entry) -> tuple[FigureCheck, FigureCheck]:
    """What is published of a model of which only the backbone is counted here.

    The parameters of the whole that the registry has must hold the backbone and round to what is published.
    """
    whole, published = entry.exact_parameters, entry.published_params
    params, flops = (
        _known_of_the_whole(figure, found, entry) or _not_compared(figure, found, _OF_THE_WHOLE)
        for figure in FIGURES
    )
    if whole is not None and published is not None:
        judged = check_figure("params", whole, published, entry.known_deviation("params"))
        if not judged.ok or found.parameters > whole:
            reason = judged.reason or f"the whole model would have {whole:,}, fewer than its backbone"
            params = replace(params, verdict=judged.verdict if not judged.ok else "off", reason=reason)
    return params, flops


_OF_THE_WHOLE = "the published figure is of the whole model, and only its backbone is counted"


def _known_of_the_whole(figure: FigureName, found: Profile, entry: Entry) -> FigureCheck | None:
    known = entry.known_deviation(figure)
    if known is None:
        return None
    reason = f"published {known.published} of the whole model: {known.reason}"
    return replace(_not_compared(figure, found, reason), verdict="known")


def _check_parameters(found: Profile, entry: Entry | None) -> FigureCheck:
    if entry is None:
        return _not_compared("params", found, "no entry of the registry is of this model")
    counted, published = found.subject, _published_subject(entry)
    if (counted.num_classes, counted.pos_emb) != (published.num_classes, published.pos_emb):
        return _not_compared("params", found, f"published {_conditions(published, size=False)}")
    exact, count = entry.exact_parameters, found.parameters - _zeros(entry, published)
    if exact is not None and count != exact:
        reason = f"the published code has {exact:,}"
        return FigureCheck("params", count, entry.published_params, "off", reason)
    if entry.published_params is None:
        return _not_compared("params", found, "no figure is published")
    known = entry.known_deviation("params")
    return check_figure("params", count, entry.published_params, known)


def _zeros(entry: Entry, subject: Subject) -> int:
    """Parameters of the model that the published code has not, where they are zeros in its files."""
    family = get_family(entry.family)
    layout = family.layouts.get(entry.layout)
    if layout is None or not layout.zeros:
        return 0
    structure = Structure(subject.pos_emb or False, subject.num_classes)
    own, published = (
        family.table(name, entry.variant, structure).parameters for name in (CANONICAL, layout.name)
    )
    return own - published


def _check_flops(found: Profile, entry: Entry | None) -> FigureCheck:
    if entry is None:
        return _not_compared("flops", found, "no entry of the registry is of this model")
    published = _published_subject(entry)
    if replace(found.subject, settings=()) != replace(published, settings=()):
        return _not_compared("flops", found, f"published {_conditions(published)}")
    if found.subject.settings != published.settings:
        given = ", ".join(f"{key} {value}" for key, value in published.settings)
        return _not_compared("flops", found, f"published for {given}")
    if entry.published_flops is None:
        return _not_compared("flops", found, "no figure is published")
    known = entry.known_deviation("flops")
    return check_figure("flops", float(found.multiply_adds), entry.published_flops, known)


def _conditions(subject: Subject, *, size: bool = True) -> str:
    """Describe what a published figure is for."""
    height, width = subject.resolution
    parts = [f"at {height}×{width}"] if size else []
    if subject.pos_emb is not None:
        parts.append(f"{'with' if subject.pos_emb else 'without'} position embedding")
    parts.append(f"with {counted(subject.num_classes, 'class')}" if subject.num_classes else "without head")
    return ", ".join(parts)


def _not_compared(figure: FigureName, found: Profile, reason: str) -> FigureCheck:
    counted = found.parameters if figure == "params" else float(found.multiply_adds)
    return FigureCheck(figure, counted, None, "not compared", reason)
