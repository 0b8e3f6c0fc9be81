"""Sums and maxima of numbers that are given by their logarithms, on NumPy arrays."""

from __future__ import annotations

import numpy as np

from ..types import HostArray

_VECTOR_LOGADDEXP = 300  # from this length on, NumPy's vector exp and log1p beat its logaddexp
_NOTHING = np.array(-800.0)  # its exponential is 0; a Python float costs 0.15 us more in each call


def logsumexp(terms: list[HostArray], out: HostArray, work: HostArray) -> None:
    """``out = log(sum(exp(terms)))`` for values below +inf; `terms` are overwritten."""
    if len(terms) == 2:
        logaddexp(terms[0], terms[1], out, work)
        return
    first, *rest = terms
    if not rest:
        np.copyto(out, first)
        return
    np.copyto(out, first)
    for term in rest:
        np.maximum(out, term, out=out)
    np.maximum(out, -1e300, out=work)  # -inf - -inf would be NaN
    for term in terms:
        term -= work
        np.exp(term, out=term)
    for term in terms[1:]:
        first += term
    np.log(first, out=first)
    out += first


def largest(terms: list[HostArray], out: HostArray, work: HostArray) -> None:
    """``out = max(terms)``"""
    first, *rest = terms
    np.copyto(out, first)
    for term in rest:
        np.maximum(out, term, out=out)


def logaddexp(a: HostArray, b: HostArray, out: HostArray, work: HostArray) -> None:
    """``out = log(exp(a) + exp(b))`` for values below +inf; `out` may hold neither argument."""
    if a.size < _VECTOR_LOGADDEXP:
        np.logaddexp(a, b, out=out)
        return
    np.maximum(a, b, out=out)
    np.minimum(a, b, out=work)
    work -= out
    np.fmax(work, _NOTHING, out=work)  # also turns the NaN of -inf - -inf into "nothing to add"
    np.exp(work, out=work)
    np.log1p(work, out=work)
    out += work
