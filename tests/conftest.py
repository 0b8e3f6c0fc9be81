import os

import pytest

for family in "argument", "reference", "selection", "torch":  # their assertions explain themselves
    pytest.register_assert_rewrite(f"tests.{family}_cases")
pytest.register_assert_rewrite("tests.selection_lattices")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """On CI nothing may be skipped: what a test needs must be there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"{len(skipped)} skipped, which CI does not allow", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
