"""The loss of given logits."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from . import checks
from .batch import BandLike, Batch
from .dlpack import exported
from .engine import returned, run
from .engine.logits_source import LogitsSource
from .ops import operations_for
from .ops.types import ArrayLike, DeviceArray, compute_dtype
from .options import Options, ReportingKeywords, spells_out
from .results import weights_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LogitsCall(NamedTuple):
    """The validated arguments of one call."""

    batch: Batch
    options: Options
    logits: ArrayLike

    def source(self, grad: DeviceArray | None = None) -> LogitsSource:
        if self.logits.ndim == 2:  # not in `checked`: JAX traces with lengths that stand for others
            checks.packed_rows("logits", self.logits, self.batch.cell_count)
        options, width = self.options, self.logits.shape[-1]
        row = options.transducer.row(width, self.batch.blank, not options.fused_log_softmax)
        return LogitsSource(self.batch, self.logits, row, grad)


def checked(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    band: BandLike = None,
    **keywords: Any,
) -> LogitsCall:
    """Validate the arguments of a loss; `keywords` are those of :class:`Options`."""
    logits = checks.floats("logits", logits, ("B", "T", "U + 1", "V"), ("cells", "V"))
    options = Options.checked(logits.dtype, **keywords)
    targets = checks.integer_array("targets", targets)
    *lattice, width = logits.shape
    if logits.ndim == 2:
        checks.rank("targets", targets, ("B", "U"))
        checks.not_empty("targets", targets, ("B",))
        if band is not None:
            raise ValueError("band is given, but packed logits have none: pad them to 4 axes")
        size, labels = targets.shape
        lattice = [size, checks.CELL_LIMIT, labels + 1]
    else:
        checks.batch_first("logits", logits, targets, positions=2)
    tokens = options.tokens(width)
    integers, topology = (targets, logit_lengths, target_lengths), options.transducer.topology
    batch = Batch(*integers, lattice, options.blank, tokens, band=band, topology=topology)
    return LogitsCall(batch, options, logits)


_LIKE_LOG_PROBS = (
    "the softmax of every row of logits sums to 1 before it is taken: these look like "
    "log-probabilities, for which fused_log_softmax=False saves the work"
)
_UNLIKE_LOG_PROBS = (
    "the probabilities of blank and label add up to more than 1 in some cell: these are no "
    "log-probabilities, as fused_log_softmax=False says; of logits, the costs are wrong without "
    "fused_log_softmax=True"
)


def warn_if_misnamed(source: LogitsSource) -> None:
    """Warn of logits that look like log-probabilities, and of log-probabilities that cannot be."""
    if source.width > 1 and source.fused == source.looks_normalised:
        warnings.warn(_LIKE_LOG_PROBS if source.fused else _UNLIKE_LOG_PROBS, stacklevel=4)


@spells_out(ReportingKeywords)
def rnnt_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    band: BandLike = None,
    **options: Unpack[ReportingKeywords],
) -> Any:
    """RNN-transducer loss of given logits.

    Arguments, their order and their defaults are those of ``torchaudio.functional.rnnt_loss``. If
    the logits come from a joint network, :func:`cupy_rnnt.joint_rnnt_loss` gets by without them.
    NumPy arrays are processed on the CPU, CuPy arrays on their device and its current stream. Other
    arrays that speak DLPack, of PyTorch or JAX for example, are processed on their device, without
    copies. Results are of the kind of `logits` and on the same device.

    Parameters
    ----------
    logits : numpy.ndarray, cupy.ndarray or other array with ``__dlpack__``, shape (B, T, U + 1, V)
        Joint outputs before softmax; float16, bfloat16, float32 or float64. Arithmetic is float32,
        or float64 for float64. Or, without padding, of shape (cells, V): a row for each cell,
        sample by sample, then frame by frame, then position by position,
        ``sum(logit_lengths * (target_lengths + 1))`` in all.
    targets : array_like, shape (B, U)
        Labels, of any integer type, on any device; entries from ``target_lengths[b]`` on are
        ignored.
    logit_lengths : array_like, shape (B,)
        Frames of each sample, 1 to T; any number of them if logits are packed.
    target_lengths : array_like, shape (B,)
        Labels of each sample, 0 to U.
    blank : int
        Index of the blank in ``[-V, V)``.
    clamp : float
        Of no effect without a gradient; see :func:`rnnt_loss_and_grad`.
    reduction : {"none", "mean", "mean_volume", "sum"}
        Costs of the samples, their mean over the batch, their sum over the number of labels in the
        batch (or over 1, if there are none), or their sum.
    fused_log_softmax : bool
        Whether to take the log-softmax of `logits`; if not, they are log-probabilities already.
    band : (first, width), optional
        Which cells exist: in frame t of sample b, positions ``first[b, t]`` to ``first[b, t] +
        width - 1``, as in k2's pruned loss. `first` is an array (B, T) of integers, `width` an
        integer, or one for each sample, (B,). No path leads through other cells, and their logits
        are not read. A band that holds no path of a sample is widened as far as the nearest path
        needs. See :func:`prune_ranges`.
    transducer : str or Transducer
        What the paths of a sample are: ``"regular"`` (Graves 2012), ``"modified"`` or
        ``"constrained"`` (those of k2, where a label takes a frame as well), ``"hat"`` (Variani
        2020), :func:`tdt`, whose rows hold V + D logits, :func:`multi_blank`, or a
        :class:`Transducer` of one's own.
    delay_penalty : float
        As in k2, ``delay_penalty * ((T - 1) / 2 - t)`` is added to the log-probability of every
        label emitted at frame t, in a sample of T frames. The cost includes it. It must be at least
        -1e6 and below 1e6.
    fastemit_lambda : float
        Of no effect without a gradient; see :func:`rnnt_loss_and_grad`.
    zero_infinity : bool
        Give a sample whose cost is not finite cost 0, as ``torch.nn.CTCLoss`` does.
    tolerance : float, optional
        Of no effect without a gradient; see :func:`rnnt_loss_and_grad`.
    max_workspace_bytes : int, optional
        Bytes that may be allocated beyond arguments and results, by default 256 MiB, and on a GPU
        a 32nd of its memory, at least 1 GiB.
    progress : callable or bool, optional
        Called now and then from the calling thread as ``progress(cells_done, cells)``. True draws
        a bar, for which tqdm must be installed.
    return_info : bool
        Whether to return an :class:`Info` as well.

    Returns
    -------
    loss : of shape (B,) if `reduction` is ``"none"``, else a NumPy scalar or a 0-d array
        In nats; float32, or float64 for float64 logits. A sample costs inf if its labels have
        probability 0, or if that dtype cannot hold its cost. It costs NaN if a NaN is in its valid
        part, or a logit is +inf. Other samples are not affected.
    info : Info
        Only if `return_info` is true.

    Raises
    ------
    ValueError
        If a shape, a length, a label or an option is out of range, or the workspace too small for
        the smallest tile.
    TypeError
        If a dtype is not supported, or an array cannot be passed on by DLPack.
    ImportError
        If an array of another library is on a GPU and CuPy is not installed, or is of bfloat16 and
        ml_dtypes is not, or `progress` is True and tqdm is not.

    Warns
    -----
    UserWarning
        If every row of the logits is normalised already; or, with ``fused_log_softmax=False``, if
        blank and label of a cell have probabilities that add up to more than 1, as logits would. If
        a band holds no path of a sample.

    References
    ----------
    Graves, "Sequence Transduction with Recurrent Neural Networks", arXiv 1211.3711.

    Examples
    --------
    Two frames, one label, and three equally likely entries of the vocabulary: two alignments, each
    of three transitions.

    >>> import numpy as np, cupy_rnnt
    >>> logits = np.zeros((1, 2, 2, 3))
    >>> loss = cupy_rnnt.rnnt_loss(logits, [[1]], [2], [1], blank=0)
    >>> bool(np.isclose(loss, -np.log(2 / 27)))
    True
    """
    call = checked(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank=blank,
        clamp=clamp,
        reduction=reduction,
        fused_log_softmax=fused_log_softmax,
        band=band,
        **options,
    )
    with operations_for(call.logits).device_of(call.logits):
        source = call.source()
        result = run(source, call.batch, call.options)
        warn_if_misnamed(source)
        return returned(result, logits)


@spells_out(ReportingKeywords)
def rnnt_loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
    *,
    overwrite_logits: bool = False,
    cost_weights: ArrayLike | None = None,
    band: BandLike = None,
    **options: Unpack[ReportingKeywords],
) -> Any:
    """Loss of given logits, and its gradient with respect to them.

    Takes the parameters of :func:`rnnt_loss`; the following are new, or also affect the gradient.

    Parameters
    ----------
    clamp : float
        If positive, each element of d cost / d logits is bounded to ``[-clamp, clamp]``, before
        cost weights are applied.
    overwrite_logits : bool
        Whether the gradient takes the place of the logits, which then must be a writeable array:
        one of another library must say so, as it can from DLPack 1.0 on. No second array of their
        size is allocated.
    cost_weights : array_like, shape (B,), optional
        Upstream gradients of the costs: the result is then the gradient of
        ``sum(cost_weights * costs)``, whatever the reduction. By default it is that of the reduced
        loss, or of the sum of the costs if `reduction` is ``"none"``.
    fastemit_lambda : float
        FastEmit regularisation (arXiv 2010.11148): occupancies of labels count ``1 + lambda``
        times in the gradient. The loss stays ``-log P``.
    tolerance : float, optional
        Cells of little occupancy may get a gradient of 0. Together they hold at most this share of
        the occupancy of their sample, at least 0 and below 1. The default is the unit round-off of
        the results, 2**-24 (2**-53 for float64): the full gradient to working precision. 0 keeps
        every cell.

    Returns
    -------
    loss : as of :func:`rnnt_loss`
    grad_logits : of the kind and the shape of `logits`
        In the dtype of the logits; 0 at padding and for a sample whose cost is not finite.
    info : Info
        Only if `return_info` is true.

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`rnnt_loss` does, before anything is overwritten.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> logits = np.zeros((1, 2, 2, 3))
    >>> loss, grad = cupy_rnnt.rnnt_loss_and_grad(logits, [[1]], [2], [1], blank=0)
    >>> np.round(grad[0, 0, 0] * 6, 12)  # both transitions are equally likely
    array([-1., -1.,  2.])
    """
    call = checked(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank=blank,
        clamp=clamp,
        reduction=reduction,
        fused_log_softmax=fused_log_softmax,
        band=band,
        **options,
    )
    overwrite_logits = checks.boolean("overwrite_logits", overwrite_logits)
    ops = operations_for(call.logits)
    with ops.device_of(call.logits):
        if overwrite_logits:
            checks.writeable("logits", logits, call.logits)
        dtype = compute_dtype(call.logits.dtype)
        labels = call.batch.label_counts
        weights = weights_of(call.options.reduction, cost_weights, labels, dtype)
        like_logits = call.logits.shape, call.logits.dtype
        grad = call.logits if overwrite_logits else ops.zeros(*like_logits)
        source = call.source(grad)
        result = run(source, call.batch, call.options, weights)
        warn_if_misnamed(source)
        return returned(result, logits, logits if overwrite_logits else exported(grad, logits))
