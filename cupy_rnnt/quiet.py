"""Functions in which NumPy does not warn of overflow, of NaN and the like."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def quiet(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function in which NumPy does not warn: infinite and NaN results are documented.

    It runs in a copy of the context, to which ``np.errstate`` belongs from NumPy 2 on. An interrupt
    that comes while NumPy enters or leaves its ``with`` block then leaves nothing behind.
    """

    def silenced(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        with np.errstate(all="ignore"):
            return function(*arguments, **options)

    @wraps(function)
    def confined(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        return copy_context().run(silenced, *arguments, **options)

    return confined
