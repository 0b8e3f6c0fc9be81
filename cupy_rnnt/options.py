"""Every keyword of the public functions: its type, its default and its check, once.

A new keyword is two edits: its lines in this file (in the :class:`TypedDict` of the functions that
take it and in :class:`Options`), and the place that uses the value. The signatures of the public
functions, the schemas of the PyTorch operators and the JAX callbacks follow from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial, wraps
from typing import Any, TypedDict, TypeVar, get_type_hints

import numpy as np

from . import checks
from .ops.numpy.activations import ACTIVATIONS
from .progress import Progress, progress_of
from .tokens import Tokens
from .transducer import NAMED, Transducer, transducer_of

REDUCTIONS = "none", "mean", "mean_volume", "sum"
Function = TypeVar("Function", bound=Callable[..., Any])


def default_tolerance(dtype: np.dtype) -> float:
    """Share of a sample's posterior that may be left out: the unit round-off of the results."""
    return 2.0**-53 if dtype == np.float64 else 2.0**-24


class Keywords(TypedDict, total=False):
    """What every loss takes by keyword."""

    transducer: str | Transducer
    delay_penalty: float
    fastemit_lambda: float
    zero_infinity: bool
    tolerance: float | None
    max_workspace_bytes: int | None


class ReadingKeywords(TypedDict, total=False):
    """What every function takes by keyword that reads something off the lattice and has no
    gradient."""

    transducer: str | Transducer
    delay_penalty: float
    max_workspace_bytes: int | None
    progress: Progress | bool | None
    return_info: bool


class JointKeywords(Keywords, total=False):
    """What every loss of a joint network takes by keyword."""

    activation: str
    dropout: float
    seed: int


class ScoreKeywords(TypedDict, total=False):
    """What the functions of scores take by keyword."""

    activation: str
    dropout: float
    seed: int
    transducer: str | Transducer
    max_workspace_bytes: int | None


class PosteriorKeywords(ReadingKeywords, total=False):
    """What functions of posteriors take by keyword."""

    tolerance: float | None


class JointPosteriorKeywords(PosteriorKeywords, total=False):
    """The same of a joint network."""

    activation: str


class JointReadingKeywords(ReadingKeywords, total=False):
    """The same of a joint network."""

    activation: str


class ReportingKeywords(Keywords, total=False):
    """What a loss takes by keyword if it can call back to Python and return an :class:`Info`."""

    progress: Progress | bool | None
    return_info: bool


def _check(check: Callable[..., Any], **limits: Any) -> dict[str, Any]:
    return {"check": partial(check, **limits)}


_ABSENT: Any = None  # replaced by :meth:`Options.checked`


@dataclass(frozen=True)
class Options:
    """The value of every keyword in one call; the public functions document them."""

    blank: int = field(default=-1, metadata=_check(checks.integer))
    clamp: float = field(default=-1.0, metadata=_check(checks.number))
    reduction: str = field(default="mean", metadata=_check(checks.choice, choices=REDUCTIONS))
    fused_log_softmax: bool = field(default=True, metadata=_check(checks.boolean))
    activation: str = field(default="tanh", metadata=_check(checks.choice, choices=(*ACTIVATIONS,)))
    dropout: float = field(default=0.0, metadata=_check(checks.number, low=0.0, below=1.0))
    seed: int = field(default=0, metadata=_check(checks.seed))
    transducer: Transducer = field(default=NAMED["regular"], metadata=_check(transducer_of))
    delay_penalty: float = field(default=0.0, metadata=_check(checks.number, low=-1e6, below=1e6))
    fastemit_lambda: float = field(default=0.0, metadata=_check(checks.number, low=0.0, below=1e6))
    zero_infinity: bool = field(default=False, metadata=_check(checks.boolean))
    tolerance: float = field(default=_ABSENT, metadata=_check(checks.number, low=0.0, below=1.0))
    max_workspace_bytes: int | None = field(default=None, metadata=_check(checks.integer))
    progress: Progress | None = field(default=None, metadata=_check(progress_of))
    return_info: bool = field(default=False, metadata=_check(checks.boolean))

    @staticmethod
    def checked(dtype: np.dtype, **values: Any) -> Options:
        """Validate values, and fill in the defaults for inputs of a dtype."""
        for option in fields(Options):
            name, value = option.name, values.get(option.name)
            if name in values and (value is not None or option.default is not None):
                values[name] = option.metadata["check"](name, value)
        if values.get("tolerance") is None:
            values["tolerance"] = default_tolerance(dtype)
        return Options(**values)

    def tokens(self, width: int) -> Tokens:
        """What a row of `width` logits holds."""
        return Tokens.of(width, self.transducer)

    def values(self) -> dict[str, Any]:
        """The value of every keyword, by name."""
        return {option.name: getattr(self, option.name) for option in fields(self)}


DEFAULTS = {option.name: option.default for option in fields(Options)} | {"transducer": "regular"}
"""The defaults that signatures show. For None, :meth:`Options.checked` may set a value."""


def spells_out(keywords: type) -> Callable[[Function], Function]:
    """Give a function with ``**options`` the signature that names its `keywords`, a
    :class:`TypedDict`, and let it refuse all others, as Python does without ``**options``."""

    def decorated(function: Function) -> Function:
        signature = inspect.signature(function)
        *explicit, _ = signature.parameters.values()
        named = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=kind
            )
            for name, kind in get_type_hints(keywords).items()
        ]
        signature = signature.replace(parameters=[*explicit, *named])
        known = frozenset(signature.parameters)

        @wraps(function)
        def refusing(*arguments: Any, **options: Any) -> Any:
            for name in options:
                if name not in known:
                    raise TypeError(
                        f"{function.__name__}() got an unexpected keyword argument {name!r}"
                    )
            return function(*arguments, **options)

        refusing.__signature__ = signature  # type: ignore[attr-defined]
        hints = {p.name: p.annotation for p in signature.parameters.values()}
        refusing.__annotations__ = hints | {"return": signature.return_annotation}
        return refusing  # type: ignore[return-value]

    return decorated
