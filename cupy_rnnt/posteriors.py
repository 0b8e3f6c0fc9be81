"""Posterior probabilities of what paths do at each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import checks
from .batch import BandLike, Batch
from .dlpack import detached, exported
from .engine import DenseOccupancies, KeptCells, scan
from .engine.sources import Source
from .joint import checked as checked_joint
from .logits import checked as checked_logits
from .logits import warn_if_misnamed
from .ops import operations_for
from .ops.types import ArrayLike
from .options import JointPosteriorKeywords, Options, PosteriorKeywords, spells_out
from .results import KeptPosteriors

if TYPE_CHECKING:
    from typing_extensions import Unpack


@spells_out(PosteriorKeywords)
def rnnt_posteriors(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    fused_log_softmax: bool = True,
    *,
    dense: bool = True,
    band: BandLike = None,
    **options: Unpack[PosteriorKeywords],
) -> Any:
    """Occupancies of the scores of all cells, of given logits.

    An occupancy is the posterior probability that a path takes, at a cell, an arc that adds up the
    score: minus the derivative of the cost with respect to the score. Arrays are processed as in
    :func:`rnnt_loss`, whose parameters these are. Nothing is differentiated: tensors that require a
    gradient count as their values.

    Parameters
    ----------
    logits : shape (B, T, U + 1, V)
    targets : shape (B, U)
    logit_lengths, target_lengths : shape (B,)
    blank : int
    fused_log_softmax : bool
    dense : bool
        Whether to return an entry for every cell, and not only for those that are kept.
    band : (first, width), optional
        Which cells exist; the others have no occupancy.
    transducer : str or Transducer
    delay_penalty : float
    tolerance : float, optional
        Cells of little occupancy may be left out. Together they hold at most this share of the
        occupancy of their sample. The default is the unit round-off of the results; 0 keeps every
        cell.
    max_workspace_bytes : int, optional
        Results are not counted, and no memory that grows with V is needed.
    progress : callable or bool, optional
    return_info : bool

    Returns
    -------
    occupancies : of the kind of `logits`, shape (B, T, U + 1, K)
        In the order of ``transducer.topology.scores``, for most transducers those of blank and
        label; float32, or float64 for float64 logits. They are 0 at padding, in cells that are left
        out, and in a sample whose cost is not finite. If logits are packed, T is the largest of the
        logit lengths.
    kept : KeptPosteriors
        In the place of `occupancies`, if `dense` is false.
    info : Info
        Only if `return_info` is true.

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`rnnt_loss` does.

    Examples
    --------
    Each frame is left by one blank, and the label is equally likely in both:

    >>> import numpy as np, cupy_rnnt
    >>> posteriors = cupy_rnnt.rnnt_posteriors(np.zeros((1, 2, 2, 3)), [[1]], [2], [1], blank=0)
    >>> blank, label = np.moveaxis(posteriors[0], -1, 0).round(12)
    >>> blank.sum(axis=1).tolist(), label.tolist()
    ([1.0, 1.0], [[0.5, 0.0], [0.5, 0.0]])
    """
    dense = checks.boolean("dense", dense)
    call = checked_logits(
        detached(logits),
        targets,
        logit_lengths,
        target_lengths,
        blank=blank,
        fused_log_softmax=fused_log_softmax,
        band=band,
        **options,
    )
    with operations_for(call.logits).device_of(call.logits):
        source = call.source()
        batch, extents = call.batch, call.logits.shape[:3]
        if call.logits.ndim == 2:  # packed
            extents = batch.size, int(batch.frames.max()), batch.most_labels + 1
        posteriors = _posteriors(source, batch, call.options, extents, dense, logits)
        warn_if_misnamed(source)
        return posteriors


@spells_out(JointPosteriorKeywords)
def joint_rnnt_posteriors(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    *,
    dense: bool = True,
    band: BandLike = None,
    **options: Unpack[JointPosteriorKeywords],
) -> Any:
    """Occupancies of the scores of all cells, of a joint network.

    Arrays are processed as in :func:`joint_rnnt_loss`, whose parameters these are. For occupancies,
    their order and what is 0 see :func:`rnnt_posteriors`.

    Parameters
    ----------
    encoder_out : shape (B, T, H)
    predictor_out : shape (B, U + 1, H)
    weight : shape (V, H)
    bias : shape (V,), or None
    targets : shape (B, U)
    logit_lengths, target_lengths : shape (B,)
    blank : int
    dense : bool
        Whether to return an entry for every cell, and not only for those that are kept.
    band : (first, width), optional
        Which cells exist; the others have no occupancy.
    transducer : str or Transducer
    delay_penalty : float
    tolerance : float, optional
        Share of the posterior of each sample that may be left out, as of the gradient in
        :func:`joint_rnnt_loss_and_grad`.
    max_workspace_bytes : int, optional
    progress : callable or bool, optional
    return_info : bool
    activation : {"tanh", "relu", "leaky_relu", "sigmoid", "gelu", "silu", "softsign", "identity"}

    Returns
    -------
    occupancies : of the kind of `encoder_out`, shape (B, T, U + 1, K)
    kept : KeptPosteriors
        In the place of `occupancies`, if `dense` is false.
    info : Info
        Only if `return_info` is true.

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`joint_rnnt_loss` does.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> rng = np.random.default_rng(0)
    >>> inputs = [rng.standard_normal(shape) for shape in [(2, 6, 5), (2, 4, 5), (7, 5), (7,)]]
    >>> labels, lengths = [[1, 2, 3], [4, 5, 0]], ([6, 5], [3, 2])
    >>> posteriors = cupy_rnnt.joint_rnnt_posteriors(*inputs, labels, *lengths)
    >>> posteriors.shape
    (2, 6, 4, 2)
    >>> posteriors[..., 1].sum(axis=1).round(6)  # each label is emitted once
    array([[1., 1., 1., 0.],
           [1., 1., 0., 0.]])
    """
    dense = checks.boolean("dense", dense)
    call = checked_joint(
        detached(encoder_out),
        detached(predictor_out),
        detached(weight),
        detached(bias),
        targets,
        logit_lengths,
        target_lengths,
        blank=blank,
        band=band,
        **options,
    )
    inputs = call.inputs
    with operations_for(inputs.encoder_out).device_of(inputs.encoder_out):
        source = call.source(gradient=False)
        extents = *inputs.encoder_out.shape[:2], inputs.predictor_out.shape[1]
        return _posteriors(source, call.batch, call.options, extents, dense, encoder_out)


def _posteriors(
    source: Source,
    batch: Batch,
    options: Options,
    extents: tuple[int, int, int],
    dense: bool,
    like: ArrayLike,
) -> Any:
    """What a public function returns, of the kind of its argument `like`."""
    if dense:
        occupancies = DenseOccupancies(extents)
        result = scan(source, batch, options, occupancies)
        posteriors = exported(occupancies.dense, like)
    else:
        kept = KeptCells()
        result = scan(source, batch, options, kept)
        concatenate = source.ops.xp.concatenate
        cells = source.cells_of(concatenate([part.packed for part in kept.parts]))
        rows = concatenate([part.occupancies.T for part in kept.parts])
        arrays = cells.sample, cells.frame, cells.position, rows
        posteriors = KeptPosteriors(*(exported(array, like) for array in arrays))
    return (posteriors, result.info()) if options.return_info else posteriors
