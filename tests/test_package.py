"""The package as a whole: what importing it costs, what it exports, how it is written down."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import cupy_rnnt
from cupy_rnnt import reference

ROOT = Path(cupy_rnnt.__file__).parent
PUBLIC = {
    "AdditiveGradients",
    "Alignment",
    "Arc",
    "Head",
    "Info",
    "JointGradients",
    "KeptPosteriors",
    "Score",
    "Topology",
    "Transducer",
    "additive_rnnt_loss",
    "additive_rnnt_loss_and_grad",
    "joint_rnnt_alignment",
    "joint_rnnt_log_probs",
    "joint_rnnt_log_probs_grad",
    "joint_rnnt_loss",
    "joint_rnnt_loss_and_grad",
    "joint_rnnt_posteriors",
    "multi_blank",
    "prune_ranges",
    "rnnt_alignment",
    "rnnt_loss",
    "rnnt_loss_and_grad",
    "rnnt_posteriors",
    "tdt",
}
FUNCTIONS = [getattr(cupy_rnnt, name) for name in sorted(PUBLIC) if name.islower()]
WITH_TEXTBOOK = [function for function in FUNCTIONS if hasattr(reference, function.__name__)]
OF_ADAPTERS = ["rnnt_loss", "joint_rnnt_loss", "joint_rnnt_log_probs"]
OF_TORCH = {"JointRNNTLoss", "RNNTLoss", "additive_rnnt_loss", *OF_ADAPTERS}
HEAVY = {"cupy", "torch", "jax", "tqdm", "matplotlib", "ml_dtypes"}
OF_GRADIENTS = {"cost_weights", "overwrite_logits"}
MOST_IMPORT_SECONDS = 0.3
MOST_LINES = 400


# Importing

IMPORT = """
import json, sys, time
import numpy, scipy.special, scipy.sparse, threadpoolctl
before = set(sys.modules)
start = time.perf_counter()
import cupy_rnnt
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""


def imported():
    """What a fresh interpreter says after importing the package."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORT],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONPATH": str(ROOT.parent)},
    )
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_importing_imports_no_framework_and_takes_no_time():
    runs = [imported() for _ in range(3)]
    modules = {name.split(".")[0] for name in runs[0]["modules"]}
    assert "cupy_rnnt" in modules
    assert not modules & HEAVY
    assert not {"cupy_rnnt.torch", "cupy_rnnt.jax"} & set(runs[0]["modules"])
    assert min(run["seconds"] for run in runs) < MOST_IMPORT_SECONDS


def test_it_says_that_it_is_typed():
    assert resources.files("cupy_rnnt").joinpath("py.typed").is_file()


def test_the_version_is_that_of_the_distribution():
    assert re.fullmatch(r"\d+\.\d+\.\d+", cupy_rnnt.__version__)
    try:
        installed = metadata.distribution("cupy_rnnt")
    except metadata.PackageNotFoundError:
        pytest.skip("cupy_rnnt is not installed")
    assert installed.version == cupy_rnnt.__version__


# Names


def test_public_names():
    assert set(cupy_rnnt.__all__) == PUBLIC | {"reference"}
    assert list(cupy_rnnt.__all__) == sorted(cupy_rnnt.__all__)
    visible = {
        name
        for name, value in vars(cupy_rnnt).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert visible == PUBLIC


def test_public_names_of_the_torch_adapter():
    adapter = pytest.importorskip("torch") and pytest.importorskip("cupy_rnnt.torch")
    assert set(adapter.__all__) == OF_TORCH


def test_public_names_of_the_jax_adapter():
    adapter = pytest.importorskip("jax") and pytest.importorskip("cupy_rnnt.jax")
    assert set(adapter.__all__) == {*OF_ADAPTERS, "additive_rnnt_loss"}


def defaults(module, name):
    """Parameters of a function and their defaults, in order."""
    parameters = inspect.signature(getattr(module, name)).parameters
    return [(name, parameter.default) for name, parameter in parameters.items()]


def test_numpy_functions_share_their_keywords():
    """The same names in the same order, whatever the input; the gradient adds its own."""
    for name in "rnnt_loss", "joint_rnnt_loss":
        alone, both = defaults(cupy_rnnt, name), defaults(cupy_rnnt, f"{name}_and_grad")
        assert [item for item in both if item[0] not in OF_GRADIENTS] == alone
        assert set(defaults(reference, name)) <= set(alone)
        assert set(defaults(reference, f"{name}_and_grad")) <= set(both)
    joint, logits = defaults(cupy_rnnt, "joint_rnnt_loss"), defaults(cupy_rnnt, "rnnt_loss")
    own = {"logits", "encoder_out", "predictor_out", "weight", "bias"}
    own |= {"fused_log_softmax", "activation", "dropout", "seed"}
    common = [[item for item in items if item[0] not in own] for items in (joint, logits)]
    assert common[0] == common[1]


# Docstrings


def documented(docstring):
    """Names in the sections of parameters: those before the colon, at the margin of the section."""
    names = set()
    for section in re.findall(r"^Parameters\n-+\n(.*?)(?:\n\n\w|\Z)", docstring, re.DOTALL | re.M):
        for line in re.findall(r"^\w.*$", section, re.M):
            names |= set(re.findall(r"\w+", line.split(" : ")[0]))
    return names


def own_and_referred(function, pattern):
    """The docstring of a function, and of those of its module that the pattern finds in it."""
    docstring = inspect.getdoc(function)
    names = re.findall(pattern, docstring)
    return [
        docstring,
        *(inspect.getdoc(getattr(sys.modules[function.__module__], n)) for n in names),
    ]


def assert_documented(function):
    """In sections of NumPy's style, with no parameter left out."""
    docstring, *others = own_and_referred(
        function, r"(?i)parameters (?:are those )?of :func:`(\w+)`"
    )
    assert docstring.splitlines()[0].endswith(".")
    for section in "Parameters", "Returns", "Raises", "Examples":
        assert f"\n{section}\n{'-' * len(section)}\n" in docstring, section
    names = set().union(*map(documented, [docstring, *others]))
    assert not set(inspect.signature(function).parameters) - names


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_parameter_is_documented(function):
    assert_documented(function)


@pytest.mark.parametrize("name", [*OF_ADAPTERS, "additive_rnnt_loss"])
def test_every_parameter_of_the_jax_adapter_is_documented(name):
    pytest.importorskip("jax")
    import cupy_rnnt.jax as adapter

    assert_documented(getattr(adapter, name))


@pytest.mark.parametrize("name", [*OF_ADAPTERS, "additive_rnnt_loss"])
def test_every_parameter_of_the_torch_adapter_is_documented(name):
    pytest.importorskip("torch")
    import cupy_rnnt.torch as adapter

    assert_documented(getattr(adapter, name))


@pytest.mark.parametrize("function", WITH_TEXTBOOK, ids=lambda function: function.__name__)
def test_every_parameter_of_the_reference_is_explained(function):
    oracle = getattr(reference, function.__name__)
    text = " ".join(own_and_referred(oracle, r"`(\w*rnnt_loss\w*)`"))
    assert not set(inspect.signature(oracle).parameters) - set(re.findall(r"\w+", text))


def test_every_field_is_documented():
    docstring = inspect.getdoc(cupy_rnnt.Info)
    for field in cupy_rnnt.Info.__dataclass_fields__:
        assert re.search(rf"^{field} : ", docstring, re.MULTILINE), field
    assert inspect.getdoc(cupy_rnnt.JointGradients)


# Files


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_short_and_say_what_they_are(path):
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= MOST_LINES
    assert re.match(r'(r?)"""\S', text)
