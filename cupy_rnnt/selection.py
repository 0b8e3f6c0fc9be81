"""Which cells to compute, and the proof that the others do not matter.

Upper bounds of all log-probs (:mod:`cupy_rnnt.tangents`) bound the posterior of every cell. The
softmax of a cell is computed where that bound could matter; these cells are C. The *certificate*
bounds what the paths that leave C could add to the probability of those that stay inside, as a
share of it. As long as it is above the tolerance, C grows.
"""

from __future__ import annotations

import numpy as np

from .ops import BoundedLattice

_WORTH_REFERENCES = 16.0  # cells for each reference; with fewer, a sample is computed whole
_MOST = 0.8  # share of a sample's cells above which the others are computed too


def worth_selecting(frames: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Indices of the samples whose references cost little beside their cells."""
    return np.flatnonzero(frames * columns >= _WORTH_REFERENCES * (frames + columns))


def next_cells(
    lattice: BoundedLattice,
    frames: np.ndarray,
    columns: np.ndarray,
    chosen: np.ndarray,
    rounds: int,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The cells to compute next, and the certificates so far.

    The first round goes by the bound of P: it leaves out cells below ``tolerance / (T + S)`` of
    that, which nearly always proves enough. The second one goes by P(C), known by then; where the
    bounds are so loose that more could leave C than stays, it aims half way. In the third one,
    cells below ``tolerance / (T S)`` of P(C) are left out: all of them together are then below the
    tolerance, so there is no fourth. Samples that need most of their cells are computed whole.

    Parameters
    ----------
    lattice : BoundedLattice
    frames, columns : numpy.ndarray, shape (n,), int64
        T and S = U + 1 of its samples.
    chosen : numpy.ndarray, shape (cells,), bool
        The cells computed so far, in packed order.
    rounds : int
        How many rounds there were.
    tolerance : float
        Largest certificate that will do.

    Returns
    -------
    new : numpy.ndarray, shape (cells,), bool
        Some cells of every sample whose certificate is too large, none of the others.
    certificate : numpy.ndarray, shape (n,), float64
    """
    cells = frames * columns
    ends = cells.cumsum()
    inside, leaving = lattice.certify()
    counts = np.add.reduceat(chosen, ends - cells, dtype=np.int64)
    with np.errstate(all="ignore"):
        certificate = np.where(counts == cells, 0.0, np.exp(leaving - inside))
    failing = ~(certificate <= tolerance)
    if not failing.any():
        return np.zeros_like(chosen), certificate
    with np.errstate(all="ignore"):  # nothing reaches NaN, so that such a sample is done whole
        if rounds == 0:
            thresholds = leaving + np.log(tolerance / (frames + columns))
        elif rounds == 1:
            half_way = np.maximum(leaving - inside, 0.0) / 2
            thresholds = inside + half_way + np.log(tolerance / (frames + columns))
        else:
            thresholds = inside + np.log(0.999 * tolerance / cells)
    new = lattice.likely(np.where(failing, thresholds, np.inf))
    added = np.add.reduceat(new, ends - cells, dtype=np.int64)
    whole = (added == 0) | (counts + added > _MOST * cells) | (rounds > 2)
    for i in np.flatnonzero(failing & whole):
        mine = slice(ends[i] - cells[i], ends[i])
        new[mine] = ~chosen[mine]
    return new, certificate
