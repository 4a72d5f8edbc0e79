"""Part of a package's source as one text that imports nothing of that package.

Taken are the definitions that some names need, with what these need in turn, as they are written: a change
of the source is a change of the text. Nothing of it is run, and no framework is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from textwrap import dedent

from ckptkit.base.errors import UsageError

_ERRORS = "ckptkit.base.errors"
"""The module whose exceptions are replaced by plain ones: theirs know of commands and terminals."""

_PLAIN_ERROR = '''class CkptkitError(ValueError):
    """What the model refuses."""

    def __init__(self, *message: object, hint: str | None = None) -> None:
        super().__init__(": ".join(map(str, message)) + (f" ({hint})" if hint else ""))'''

_Import = ast.Import | ast.ImportFrom


class NotSelfContainedError(UsageError):
    """Some code cannot be taken out of its package."""


@dataclass(frozen=True)
class _Module:
    """A module's source and what its names are bound to."""

    name: str
    source: str
    is_package: bool

    @cached_property
    def lines(self) -> list[str]:
        return self.source.splitlines()

    @cached_property
    def body(self) -> list[ast.stmt]:
        """The statements, those under ``if TYPE_CHECKING`` too."""
        typing = [
            node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) else [node]
            for node in ast.parse(self.source).body
        ]
        return list(chain.from_iterable(typing))

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """Functions, classes and constants."""
        return {name: node for node in self.body for name in _bound(node)}

    @cached_property
    def imports(self) -> dict[str, tuple[_Import, ast.alias]]:
        """What each imported name comes from."""
        return {
            alias.asname or alias.name.partition(".")[0]: (node, alias)
            for node in self.body
            if isinstance(node, _Import)
            for alias in node.names
        }

    def origin(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module that a statement imports from."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        base = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def text(self, node: ast.stmt) -> str:
        """A statement as it is written, with the text that documents it, without checks of settings."""
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        last = node.end_lineno or node.lineno
        after = self.body[self.body.index(node) + 1 :][:1]
        if isinstance(node, ast.Assign | ast.AnnAssign) and after and _is_text(after[0]):
            last = after[0].end_lineno or last
        left_out = {
            line
            for inner in ast.walk(node)
            if _is_settings_check(inner)
            for line in range(inner.lineno, (inner.end_lineno or inner.lineno) + 1)  # type: ignore[attr-defined]
        }
        lines = (self.lines[line - 1] for line in range(first, last + 1) if line not in left_out)
        return dedent("\n".join(lines))


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    yield from (
        one.id for target in targets if target for one in ast.walk(target) if isinstance(one, ast.Name)
    )


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_settings_check(node: ast.AST) -> bool:
    """``FAMILY.check_setting(key, value)``: the settings of an exported folder have been checked."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "check_setting"
    )


def _names(node: ast.AST) -> Iterator[str]:
    """Every name in a statement, apart from checks of settings."""
    if _is_settings_check(node):
        return
    if isinstance(node, ast.Name):
        yield node.id
    if isinstance(node, ast.AnnAssign) and node.value and _is_text(ast.Expr(node.value)):  # a type's name
        with suppress(SyntaxError):
            yield from _names(ast.parse(ast.literal_eval(node.value)))
    for inner in ast.iter_child_nodes(node):
        yield from _names(inner)


@dataclass
class SelfContained:
    """Definitions of some packages, gathered one by one with what they need."""

    packages: Sequence[str]  # top-level packages that the text must not import
    _modules: dict[str, _Module] = field(default_factory=dict)
    _wanted: dict[str, dict[str, ast.stmt]] = field(default_factory=dict)  # by module
    _needs: dict[str, dict[str, None]] = field(default_factory=dict)  # modules by the one that imports them
    _owners: dict[str, str] = field(default_factory=dict)  # which module has a name
    _imports: dict[str, tuple[str, ast.alias]] = field(default_factory=dict)  # what, from where, by name
    _errors: dict[str, None] = field(default_factory=dict)

    def add(self, module: str, name: str) -> None:
        """Gather a name of a module."""
        here = self._module(module)
        if name in here.definitions:
            self._claim(name, module)
            node = here.definitions[name]
            if node in self._wanted.get(module, {}).values():
                return
            self._wanted.setdefault(module, {})[name] = node
            self._refuse_inner_imports(here, node)
            for used in dict.fromkeys(_names(node)):
                if used != name and (used in here.definitions or used in here.imports):
                    self.add(module, used)
        elif name in here.imports:
            self._add_import(here, name)
        else:
            raise NotSelfContainedError(f"{module} has no {name}")

    def _add_import(self, here: _Module, name: str) -> None:
        node, alias = here.imports[name]
        if isinstance(node, ast.Import):
            self._refuse_own(here, alias.name)
            self._claim(name, "import " + alias.name)
            self._imports[name] = "", alias
            return
        origin = here.origin(node)
        if origin.partition(".")[0] not in self.packages:
            self._claim(name, f"{origin} {alias.name}")
            self._imports[name] = origin, alias
            return
        if alias.asname not in (None, alias.name):
            raise NotSelfContainedError(f"{here.name} imports {origin}.{alias.name} under another name")
        if origin == _ERRORS and isinstance(self._module(origin).definitions.get(name), ast.ClassDef):
            self._claim(name, origin)
            self._errors[name] = None
        elif name not in self._module(origin).definitions and name not in self._module(origin).imports:
            self._refuse_own(here, f"{origin}.{name}")
        else:
            self._needs.setdefault(here.name, {})[origin] = None
            self.add(origin, name)

    def _module(self, name: str) -> _Module:
        if name not in self._modules:
            spec = find_spec(name)
            read = getattr(spec and spec.loader, "get_source", None)
            source = read(name) if read else None
            if spec is None or source is None:
                raise NotSelfContainedError(f"the source of {name} is not there")
            self._modules[name] = _Module(name, source, spec.submodule_search_locations is not None)
        return self._modules[name]

    def _claim(self, name: str, owner: str) -> None:
        if self._owners.setdefault(name, owner) != owner:
            raise NotSelfContainedError(f"{self._owners[name]} and {owner} both have a name {name}")

    def _refuse_own(self, here: _Module, imported: str) -> None:
        if imported.partition(".")[0] in self.packages:
            raise NotSelfContainedError(
                f"{here.name} imports the module {imported}",
                hint=f"import the names it needs: from {imported} import …",
            )

    def _refuse_inner_imports(self, here: _Module, node: ast.stmt) -> None:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import):
                for alias in inner.names:
                    self._refuse_own(here, alias.name)
            elif isinstance(inner, ast.ImportFrom):
                self._refuse_own(here, here.origin(inner))

    @property
    def names(self) -> frozenset[str]:
        """Every name that the text binds."""
        return frozenset(self._owners)

    def imports(self) -> str:
        """The import statements."""
        by_origin: dict[str, list[ast.alias]] = {}
        for _, (origin, alias) in sorted(self._imports.items()):
            by_origin.setdefault(origin, []).append(alias)
        plain = [ast.Import([alias]) for alias in by_origin.pop("", [])]
        named = [ast.ImportFrom(origin, aliases, 0) for origin, aliases in sorted(by_origin.items())]
        return "\n".join(ast.unparse(statement) for statement in (*plain, *named))

    def _in_order(self) -> list[str]:
        """The modules that something was taken from, each after those it needs."""
        order: dict[str, None] = {}
        seen: set[str] = set()

        def visit(module: str) -> None:
            if module not in seen:
                seen.add(module)
                for needed in self._needs.get(module, {}):
                    visit(needed)
                order[module] = None

        for module in self._wanted:
            visit(module)
        return [module for module in order if module in self._wanted]

    def text(self) -> str:
        """The definitions, in an order in which each is there before it is needed."""
        parts = []
        if self._errors:
            parts.append(_PLAIN_ERROR)
            others = [name for name in self._errors if name != "CkptkitError"]
            parts += [f'class {name}(CkptkitError):\n    """See its message."""' for name in others]
        for module in self._in_order():
            nodes = {node.lineno: node for node in self._wanted[module].values()}
            parts += [self._modules[module].text(nodes[line]) for line in sorted(nodes)]
        return "\n\n\n".join(parts)
