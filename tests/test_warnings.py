"""Which warnings fail a test: those caused here, not those of a dependency about itself."""

from __future__ import annotations

import warnings

import pytest

OURS = "cupy_rnnt.logits", "tests.engine.test_engine", "__main__", "recipe", "common"
OF_VALUES = "numpy._core.fromnumeric", "numpy.linalg", "scipy.special._logsumexp"
OF_EXCEPTIONS = "_pytest.threadexception", "_pytest.unraisableexception"
OTHERS = "torch.jit._script", "torch._tensor", "jax._src.core", "cupy._core.core", "dateutil.tz.tz"


def warn(category, module):
    warnings.warn_explicit("text", category, f"{module}.py", 1, module)


every_category = pytest.mark.parametrize(
    "category", [DeprecationWarning, FutureWarning, RuntimeWarning, UserWarning]
)


@every_category
@pytest.mark.parametrize("module", OURS + OF_VALUES + OF_EXCEPTIONS)
def test_an_error(category, module):
    with pytest.raises(category, match="text"):
        warn(category, module)


@every_category
@pytest.mark.parametrize("module", OTHERS)
def test_shown(category, module):
    with warnings.catch_warnings(record=True) as shown:
        warn(category, module)
    assert [(str(one.message), one.category) for one in shown] == [("text", category)]
