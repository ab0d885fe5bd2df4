"""After `check_arrays_of`, the shapes and types of arrays in the library's signatures become checks.

Only annotations that speak of an array are checked. Other arguments are left to the library, whose own errors say more
than a type checker's, and are tested themselves; beartype alone would also refuse to check protocols.

jaxtyping's own import hook wraps every function, nested ones whenever they are made, which is a fifth of the suite's
processor time. Here only functions and dataclasses that speak of an array are wrapped.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

CHECK = "_check_arrays"
ARRAY = re.compile(r"\b(Bool|Float|Int|Prompts)\b")
"""Names of annotations that speak of an array; `Prompts` is the library's own."""


def check_arrays_of(package: str) -> None:
    """The package's modules that are imported from now on check their arrays."""
    sys.meta_path.insert(0, _Finder(package))


def arrays_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, checking those of its annotations that speak of an array."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _speaks_of_an_array(hint)}
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """The module's code with its checks; compiled anew each time, as Python caches the plain code alone."""
        path = self.get_filename(fullname)
        tree = _Decorator().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[CHECK] = lambda checked: jaxtyped(checked, typechecker=arrays_alone)
        super().exec_module(module)


class _Decorator(ast.NodeTransformer):
    """Puts the check around functions and dataclasses whose annotations speak of an array."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if _names_an_array(node.args) or _names_an_array(node.returns):
            node.decorator_list.append(ast.Name(CHECK, ast.Load()))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if any(_names_an_array(field.annotation) for field in node.body if isinstance(field, ast.AnnAssign)):
            node.decorator_list.insert(0, ast.Name(CHECK, ast.Load()))
        return self.generic_visit(node)


def _names_an_array(node: ast.AST | None) -> bool:
    return node is not None and ARRAY.search(ast.unparse(node)) is not None


def _speaks_of_an_array(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(_speaks_of_an_array(part) for part in get_args(hint))
