import gc
import os
from collections import Counter

import pytest

from cupy_rnnt.ops.cuda import launch

from . import device_calls, devices

# Assertions of theirs explain themselves, too.
for folder in "arguments", "dlpack", "jax", "reference", "engine.selection", "torch":
    pytest.register_assert_rewrite(f"tests.{folder}.cases")
pytest.register_assert_rewrite("tests.engine.selection.lattices")
# Processes share a GPU here, of whose memory the first one would take three quarters.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def pytest_ignore_collect(collection_path, config):
    """What needs a toolkit runs only if it is asked for by name: see .ci/integrations."""
    if collection_path.parent.name == "integrations" and collection_path.suffix == ".py":
        return not any(argument.endswith(collection_path.name) for argument in config.args)
    return None


def pytest_collection_modifyitems(config, items):
    seen, dropped = Counter(), []
    for item in items:
        mark = item.get_closest_marker("thinned")
        if mark and "emulated" in item.name:
            seen[item.function] += 1
            if seen[item.function] % mark.args[0]:
                dropped.append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in set(dropped)]


def pytest_addoption(parser):
    text = (
        "where tests with a fixture `device` or `gpu` run: of tests/devices.py, or module:function"
    )
    parser.addoption("--devices", metavar="NAME,...", help=text)


def pytest_generate_tests(metafunc):
    for fixture, others in ("device", ()), ("gpu", ("numpy",)):
        if fixture in metafunc.fixturenames:
            given = metafunc.config.getoption("--devices")
            names = given.split(",") if given else devices.default_names()
            names = [name for name in names if name not in others]
            metafunc.parametrize(fixture, names, indirect=True)


@pytest.fixture
def device(request, monkeypatch):
    """One device after the other: see tests/devices.py. Tests of kernels look for races on an
    emulated one; without that, the others take a fifth less time."""
    with devices.factory(request.param)() as found, device_calls.running_on(found):
        if found.name == "emulated":
            monkeypatch.setattr(found.xp.kernels.options, "races", "ops" in request.path.parts)
        yield found


@pytest.fixture
def library(request):
    """One library after the other: see tests/dlpack/cases.py."""
    from .dlpack.cases import library_of

    with library_of(request.param) as found:
        yield found


gpu = device
"""Only those that run kernels."""


@pytest.fixture
def collector():
    """`gc.collect` looks at nothing that is older than the test: kernels that were decoded for the
    emulator take it seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def launched(monkeypatch):
    """The kernels that the test launches, by name and template arguments."""
    found, function = set(), launch._function

    def record(library, device, kernel, variant):
        found.add((kernel.name, variant))
        return function(library, device, kernel, variant)

    monkeypatch.setattr(launch, "_function", record)
    return found


@pytest.fixture
def jax_on_cpu():
    """Tests of what JAX does on the host: it would take a GPU if it can use one."""
    jax = pytest.importorskip("jax")
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """On CI nothing may be skipped: what a test needs must be there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"{len(skipped)} skipped, which CI does not allow", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
