"""Imports of the package go downwards: no module needs, even for its types, one that needs it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter

from . import ROOT

PACKAGE = "cupy_rnnt"
# What does not compute does not know how: values and plain types come before all operations.
PLAIN = f"{PACKAGE}.topology", f"{PACKAGE}.ops.types"


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in (ROOT / PACKAGE).rglob("*.py")}


def imports(module):
    """Modules of the package that one names in its imports, also those within functions."""
    path = MODULES[module]
    folder = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            parent = ".".join([*base, *filter(None, [node.module])])
            names = {f"{parent}.{alias.name}" for alias in node.names}
            yield from (name if name in MODULES else parent for name in names)


def graph():
    return {module: set(imports(module)) & set(MODULES) - {module} for module in MODULES}


def test_no_circle():
    order = list(TopologicalSorter(graph()).static_order())  # raises CycleError
    assert set(order) == set(MODULES)
    assert len(order) > 40


def test_values_and_types_need_nothing():
    needed = graph()
    assert [needed[module] for module in PLAIN] == [set(), set()]


def test_the_engine_knows_no_device():
    needed = graph()
    engine = [module for module in MODULES if module.startswith(f"{PACKAGE}.engine")]
    assert len(engine) > 8
    for module in engine:
        devices = {
            name
            for name in needed[module]
            if name.startswith((f"{PACKAGE}.ops.numpy", f"{PACKAGE}.ops.cuda"))
        }
        assert not devices, module
