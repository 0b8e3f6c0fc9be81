"""Public names are in the reference pages, with an example each; those of the README run."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import pytest

import cupy_rnnt

PACKAGE = Path(cupy_rnnt.__file__).parent
ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
NEED_TOOLKITS = {"transformers", "nemo", "espnet"}  # whose examples cannot run without them
TOOLKITS = "espnet", "icefall", "nemo", "speechbrain", "transformers"
MODULES = ["", "torch", "jax", "reference", "plot", *(f"integrations.{name}" for name in TOOLKITS)]
NAMED = re.compile(
    r"^\.\. (?:currentmodule|(?:auto)?(?:function|class|data)):: ([\w.]+)", re.MULTILINE
)


def path_of(module):
    """The file of a module, "" for the package."""
    folder = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def public_names(path):
    """What ``__all__`` lists or, without one, the functions that do not begin with ``_``."""
    body = ast.parse(path.read_text()).body
    for node in body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    return [name for name in functions if not name.startswith("_")]


def docstring_of(path, name):
    """The docstring of a function or class, where it is defined; None for data and modules.

    The files are read, not imported, because frameworks and toolkits may be absent."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return ast.get_docstring(node)
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            base = path.parents[node.level - 1].relative_to(PACKAGE).parts
            return docstring_of(path_of(".".join([*base, node.module])), name)
    return None


def names_on_pages():
    """Full names that the pages document."""
    found = set()
    for page in PAGES.glob("*.rst"):
        module = ""
        for match in NAMED.finditer(page.read_text()):
            if "currentmodule" in match[0]:
                module = match[1]
            else:
                full = match[1].startswith("cupy_rnnt.")
                found.add(match[1] if full else f"{module}.{match[1]}")
    return found


PUBLIC = [
    (module, name)
    for module in MODULES
    for name in public_names(path_of(module))
    if (module, name) != ("", "reference")
]


def test_the_pages_document_all_public_names():
    public = {".".join(filter(None, ["cupy_rnnt", *pair])) for pair in PUBLIC}
    assert len(public) > 40
    assert public <= names_on_pages()


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=".".join)
def test_every_public_docstring_has_an_example(module, name):
    docstring = docstring_of(path_of(module), name)
    if docstring is None:
        assert name.isupper()  # data
    elif module.partition(".")[2] in NEED_TOOLKITS:
        assert "Examples\n--------\n.. code-block:: python" in docstring
    else:
        assert "\nExamples\n--------\n" in docstring
        assert "\n>>> " in docstring


def test_the_examples_of_the_readme_run():
    path, flags = ROOT / "README.rst", doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testfile(str(path), module_relative=False, optionflags=flags)
    assert results.failed == 0
