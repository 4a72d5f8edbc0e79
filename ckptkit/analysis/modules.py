"""The tree of a model's modules, each with what it has and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ckptkit.analysis.counting import Count, Tally

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
