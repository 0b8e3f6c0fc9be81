"""The likeliest path of each sample: alignments of labels and frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .batch import BandLike, Batch
from .dlpack import detached, exported
from .engine import likeliest_paths
from .engine.sources import Source
from .joint import checked as checked_joint
from .logits import checked as checked_logits
from .logits import warn_if_misnamed
from .ops import operations_for
from .ops.types import ArrayLike
from .options import JointReadingKeywords, Options, ReadingKeywords, spells_out
from .results import Alignment

if TYPE_CHECKING:
    from typing_extensions import Unpack


@spells_out(ReadingKeywords)
def rnnt_alignment(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    fused_log_softmax: bool = True,
    *,
    band: BandLike = None,
    **options: Unpack[ReadingKeywords],
) -> Any:
    """The likeliest alignment of labels and frames, of given logits.

    Arrays are processed as in :func:`rnnt_loss`, whose parameters these are. Nothing is
    differentiated: tensors that require a gradient count as their values.

    Of several likeliest paths, the result is the one whose first arc that differs comes first in
    the topology: for the regular transducer, and those of k2, the one that emits a label later. The
    rule is about sums of scores in float64 as they are computed, from the last frame to the first.

    Parameters
    ----------
    logits : shape (B, T, U + 1, V)
    targets : shape (B, U)
    logit_lengths, target_lengths : shape (B,)
    blank : int
    fused_log_softmax : bool
    band : (first, width), optional
        Which cells exist; the path leads through them only.
    transducer : str or Transducer
    delay_penalty : float
    max_workspace_bytes : int, optional
    progress : callable or bool, optional
    return_info : bool

    Returns
    -------
    alignment : Alignment
    info : Info
        Only if `return_info` is true.

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`rnnt_loss` does.

    Examples
    --------
    Three frames, and a label that is likely in the second one:

    >>> import numpy as np, cupy_rnnt
    >>> logits = np.zeros((1, 3, 2, 3))
    >>> logits[0, 1, 0, 1] = 5
    >>> alignment = cupy_rnnt.rnnt_alignment(logits, [[1]], [3], [1], blank=0)
    >>> alignment.frames.tolist(), alignment.certificate.tolist()
    ([[1]], [0.0])
    """
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
        alignment = _aligned(source, call.batch, call.options, logits)
        warn_if_misnamed(source)
        return alignment


@spells_out(JointReadingKeywords)
def joint_rnnt_alignment(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    *,
    band: BandLike = None,
    **options: Unpack[JointReadingKeywords],
) -> Any:
    """The likeliest alignment of labels and frames, of a joint network.

    Arrays are processed as in :func:`joint_rnnt_loss`, whose parameters these are. Most cells are
    left out, but the path is proven to be the likeliest of all: where it would be another one with
    any scores that the other cells may have, more of them are computed. Nothing is differentiated:
    tensors that require a gradient count as their values. For ties see :func:`rnnt_alignment`.

    Parameters
    ----------
    encoder_out : shape (B, T, H)
    predictor_out : shape (B, U + 1, H)
    weight : shape (V, H)
    bias : shape (V,), or None
    targets : shape (B, U)
    logit_lengths, target_lengths : shape (B,)
    blank : int
    band : (first, width), optional
        Which cells exist; the path leads through them only.
    transducer : str or Transducer
    delay_penalty : float
    max_workspace_bytes : int, optional
    progress : callable or bool, optional
    return_info : bool
    activation : {"tanh", "relu", "leaky_relu", "sigmoid", "gelu", "silu", "softsign", "identity"}

    Returns
    -------
    alignment : Alignment
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
    >>> alignment = cupy_rnnt.joint_rnnt_alignment(*inputs, labels, *lengths)
    >>> alignment.frames.shape, alignment.frames[1, 2]
    ((2, 3), np.int64(-1))
    >>> costs = cupy_rnnt.joint_rnnt_loss(*inputs, labels, *lengths, reduction="none")
    >>> bool((alignment.log_prob < -costs).all())  # of one path, and of all of them
    True
    """
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
    with operations_for(call.inputs.encoder_out).device_of(call.inputs.encoder_out):
        source = call.source(gradient=False)
        return _aligned(source, call.batch, call.options, encoder_out)


def _aligned(source: Source, batch: Batch, options: Options, like: ArrayLike) -> Any:
    """What a public function returns, of the kind of its argument `like`."""
    result, paths = likeliest_paths(source, batch, options)
    arrays = (
        paths.frames,
        paths.durations if options.transducer.durations else None,
        (-result.costs).astype(result.dtype),
        source.ops.asarray(result.certificate.astype(result.dtype)),
    )
    alignment = Alignment(*(exported(array, like) for array in arrays))
    return (alignment, result.info()) if options.return_info else alignment
