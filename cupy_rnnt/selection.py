"""Which cells to compute, and the proof that the others do not matter.

Upper bounds of all log-probs (:mod:`cupy_rnnt.tangents`) bound the posterior of every cell. The
softmax of a cell is computed where that bound could matter; these cells are C. The *certificate*
bounds what the paths that leave C could add to the probability of those that stay inside, as a
share of it. As long as it is above the tolerance, C grows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .ops import BoundedLattice, operations_for

_WORTH_REFERENCES = 16.0  # cells for each reference; with fewer, a sample is computed whole
_MOST = 0.8  # share of a sample's cells above which the others are computed too


def worth_selecting(frames: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Indices of the samples whose references cost little beside their cells."""
    return np.flatnonzero(frames * columns >= _WORTH_REFERENCES * (frames + columns))


def counts_of(mask: Any, cells: np.ndarray) -> Any:
    """How many cells of each sample a mask marks, given how many there are: int64, (n,)."""
    ops = operations_for(mask)
    ends = ops.xp.zeros(len(cells) + 1, np.int64)
    ends[1:] = ops.xp.cumsum(mask, dtype=np.int64)[ops.asarray(cells.cumsum() - 1)]
    return ends[1:] - ends[:-1]


def next_cells(
    lattice: BoundedLattice,
    frames: np.ndarray,
    columns: np.ndarray,
    most_arcs: np.ndarray,
    chosen: Any,
    rounds: int,
    tolerance: float,
) -> tuple[Any, Any]:
    """The cells to compute next, and the certificates so far.

    The first round goes by the bound of P: it leaves out cells below ``tolerance / (A + 1)`` of
    that, with at most A arcs on a path, which nearly always proves enough. The second one goes by
    P(C), known by then; where the bounds are so loose that more could leave C than stays, it aims
    half way. In the third one, cells below ``tolerance / (T S)`` of P(C) are left out: all of them
    together are then below the tolerance, so there is no fourth. Samples that need most of their
    cells are computed whole.

    Parameters
    ----------
    lattice : BoundedLattice
    frames, columns : numpy.ndarray, shape (n,), int64
        T and S = U + 1 of its samples.
    most_arcs : numpy.ndarray, shape (n,), int64
        How many arcs a path of each sample has at most.
    chosen : shape (cells,), bool
        The cells computed so far, in packed order, on the device of the lattice.
    rounds : int
        How many rounds there were.
    tolerance : float
        Largest certificate that will do.

    Returns
    -------
    new : shape (cells,), bool, or None
        Some cells of every sample whose certificate is too large, none of the others. None if no
        certificate is.
    certificate : shape (n,), float64
    """
    ops = operations_for(chosen)
    xp, cells = ops.xp, frames * columns
    inside, leaving = lattice.certify()
    counts, cells_there = counts_of(chosen, cells), ops.asarray(cells)
    with np.errstate(all="ignore"):
        certificate = xp.where(counts == cells_there, 0.0, xp.exp(leaving - inside))
    failing = ~(certificate <= tolerance)
    if rounds and not ops.host(failing.any())[0]:
        return None, certificate
    with np.errstate(all="ignore"):  # nothing reaches NaN, so that such a sample is done whole
        share_each = ops.asarray(np.log(tolerance / (most_arcs + 1)))
        if rounds == 0:
            thresholds = leaving + share_each
        elif rounds == 1:
            half_way = xp.maximum(leaving - inside, 0.0) / 2
            thresholds = inside + half_way + share_each
        else:
            thresholds = inside + ops.asarray(np.log(0.999 * tolerance / cells))
    new = lattice.likely(xp.where(failing, thresholds, np.inf))
    added = counts_of(new, cells)
    whole = (added == 0) | (counts + added > _MOST * cells_there) | (rounds > 2)
    new |= ops.repeat(failing & whole, cells) & ~chosen
    return new, certificate
