"""The loss of a joint network, computed without ever holding its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from . import checks
from .batch import BandLike, Batch
from .dlpack import exported
from .engine import returned, run
from .engine.joint_source import JointSource
from .ops import operations_for
from .ops.types import ArrayLike, JointInputs
from .options import JointKeywords, Options, ReportingKeywords, spells_out
from .results import JointGradients, weights_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Keywords(JointKeywords, ReportingKeywords, total=False):
    """What the functions of this module take by keyword."""


class JointCall(NamedTuple):
    """The validated arguments of one call."""

    batch: Batch
    options: Options
    inputs: JointInputs

    def source(self, gradient: bool, out: JointGradients | None = None) -> JointSource:
        return JointSource(self.batch, self.inputs, self.options, gradient, out)


def checked(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    band: BandLike = None,
    **keywords: Any,
) -> JointCall:
    """Validate the arguments of a joint loss; `keywords` are those of :class:`Options`."""
    encoder_out = checks.floats("encoder_out", encoder_out, ("B", "T", "H"))
    dtype = encoder_out.dtype
    options = Options.checked(dtype, **keywords)
    predictor_out = checks.floats("predictor_out", predictor_out, ("B", "U + 1", "H"), dtype=dtype)
    targets = checks.integer_array("targets", targets)
    checks.batch_first("encoder_out", encoder_out, targets)
    checks.batch_first("predictor_out", predictor_out, targets, positions=1)
    size, frames, hidden_size = encoder_out.shape
    positions = predictor_out.shape[1]
    checks.shape("predictor_out", predictor_out, (size, positions, hidden_size))
    weight = checks.floats("weight", weight, ("V", "H"), dtype=dtype)
    checks.output_layer(weight, hidden_size)
    if bias is not None:
        bias = checks.floats("bias", bias, ("V",), dtype=dtype)
        checks.shape("bias", bias, (len(weight),))
    inputs = JointInputs(encoder_out, predictor_out, weight, bias)
    checks.same_device(**inputs._asdict())
    lattice, tokens = (size, frames, positions), options.tokens(len(weight))
    integers, topology = (targets, logit_lengths, target_lengths), options.transducer.topology
    batch = Batch(*integers, lattice, options.blank, tokens, band=band, topology=topology)
    return JointCall(batch, options, inputs)


@spells_out(Keywords)
def joint_rnnt_loss(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    *,
    band: BandLike = None,
    **options: Unpack[Keywords],
) -> Any:
    """RNN-transducer loss of a joint network, from its inputs and its output layer.

    The joint network is ``hidden = dropout(activation(encoder_out[b, t] + predictor_out[b, u]))``,
    ``logits = hidden @ weight.T + bias``. The (B, T, U + 1, V) logits are computed a tile at a
    time and never held. NumPy arrays are processed on the CPU, CuPy arrays on their device and its
    current stream. Other arrays that speak DLPack, of PyTorch or JAX for example, are processed on
    their device, without copies. Results are of the kind of `encoder_out` and on the same device.

    Parameters
    ----------
    encoder_out : numpy.ndarray, cupy.ndarray or other array with ``__dlpack__``, shape (B, T, H)
        Encoder outputs, projected to the hidden size of the joint network; float16, bfloat16,
        float32 or float64. Arithmetic is float32, or float64 for float64.
    predictor_out : likewise, shape (B, U + 1, H)
        Predictor outputs. All floating arguments have the same dtype and are on the same device.
    weight : likewise, shape (V, H)
        Output layer, as in ``torch.nn.Linear``.
    bias : likewise, shape (V,), or None
    targets : array_like, shape (B, U)
        Labels, of any integer type, on any device; entries from ``target_lengths[b]`` on are
        ignored.
    logit_lengths : array_like, shape (B,)
        Frames of each sample, 1 to T.
    target_lengths : array_like, shape (B,)
        Labels of each sample, 0 to U.
    blank : int
        Index of the blank in ``[-V, V)``.
    clamp : float
        Of no effect without a gradient; see :func:`joint_rnnt_loss_and_grad`.
    reduction : {"none", "mean", "mean_volume", "sum"}
        Costs of the samples, their mean over the batch, their sum over the number of labels in the
        batch (or over 1, if there are none), or their sum.
    activation : {"tanh", "relu", "leaky_relu", "sigmoid", "gelu", "silu", "softsign", "identity"}
        `gelu` is the tanh form, and the slope of `leaky_relu` below 0 is 0.01.
    dropout : float
        Probability that a hidden value is 0 in a call, behind the activation; the others are
        multiplied by ``1 / (1 - dropout)``, as ``torch.nn.Dropout`` does in training. At least 0
        and below 1.
    seed : int
        Says which hidden values are 0, together with the numbers of sample, frame, position and
        unit: the same ones on a CPU and on a GPU, whatever the workspace. Pass another seed in
        every step. From 0 to ``2**63 - 1``.
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
        Of no effect without a gradient; see :func:`joint_rnnt_loss_and_grad`.
    zero_infinity : bool
        Give a sample whose cost is not finite cost 0, as ``torch.nn.CTCLoss`` does.
    tolerance : float, optional
        Improbable alignments may be left out of a cost. They are proven to hold at most the share
        ``tolerance / 2`` of the probability of the rest: a cost is at most ``log1p(tolerance / 2)``
        too large, and never too small. At least 0, which computes every cell, and below 1; the
        default is the unit round-off of the results, 2**-24 (2**-53 for float64).
    max_workspace_bytes : int, optional
        Bytes that may be allocated beyond arguments and results, by default 256 MiB, and on a GPU
        a 32nd of its memory, at least 1 GiB. What a BLAS library holds for its own use is not
        counted.
    progress : callable or bool, optional
        Called now and then from the calling thread as ``progress(cells_done, cells)``. True draws
        a bar, for which tqdm must be installed.
    return_info : bool
        Whether to return an :class:`Info` as well.

    Returns
    -------
    loss : of shape (B,) if `reduction` is ``"none"``, else a NumPy scalar or a 0-d array
        In nats; float32, or float64 for float64 inputs. A sample costs inf if its labels have
        probability 0, or if that dtype cannot hold its cost. It costs NaN if a NaN is in its valid
        part, or a logit is +inf. Other samples are not affected.
    info : Info
        Only if `return_info` is true.

    Raises
    ------
    ValueError
        If a shape, a length, a label or an option is out of range, the floating arguments are not
        all on the same device, or the workspace is too small for the smallest tile.
    TypeError
        If a dtype is not supported, the dtypes of the floating arguments differ, or an array cannot
        be passed on by DLPack.
    ImportError
        If an array of another library is on a GPU and CuPy is not installed, or is of bfloat16 and
        ml_dtypes is not.

    Warns
    -----
    UserWarning
        If a band holds no path of a sample.

    References
    ----------
    Graves, "Sequence Transduction with Recurrent Neural Networks", arXiv 1211.3711.

    Braun, McDermott and Hsiao, "Neural Transducer Training: Reduced Memory Consumption with
    Sample-wise Computation", arXiv 2211.16270.

    Examples
    --------
    >>> import numpy as np, cupy_rnnt
    >>> rng = np.random.default_rng(0)
    >>> encoder_out = rng.standard_normal((2, 6, 5), dtype=np.float32)
    >>> predictor_out = rng.standard_normal((2, 4, 5), dtype=np.float32)
    >>> weight = rng.standard_normal((7, 5), dtype=np.float32)
    >>> loss = cupy_rnnt.joint_rnnt_loss(encoder_out, predictor_out, weight, None,
    ...                                  [[1, 2, 3], [4, 5, 0]], [6, 5], [3, 2])
    >>> loss.shape, loss.dtype
    ((), dtype('float32'))
    """
    call = checked(
        encoder_out,
        predictor_out,
        weight,
        bias,
        targets,
        logit_lengths,
        target_lengths,
        blank=blank,
        clamp=clamp,
        reduction=reduction,
        band=band,
        **options,
    )
    with operations_for(call.inputs.encoder_out).device_of(call.inputs.encoder_out):
        result = run(call.source(gradient=False), call.batch, call.options)
        return returned(result, encoder_out)


@spells_out(Keywords)
def joint_rnnt_loss_and_grad(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    clamp: float = -1.0,
    reduction: str = "mean",
    *,
    cost_weights: ArrayLike | None = None,
    band: BandLike = None,
    **options: Unpack[Keywords],
) -> Any:
    """Loss of a joint network, and its gradients with respect to all four inputs.

    Takes the parameters of :func:`joint_rnnt_loss`; the following are new, or also affect the
    gradients.

    Parameters
    ----------
    clamp : float
        If positive, each element of d cost / d logits is bounded to ``[-clamp, clamp]``, before
        cost weights are applied.
    cost_weights : array_like, shape (B,), optional
        Upstream gradients of the costs: the result is then the gradient of
        ``sum(cost_weights * costs)``, whatever the reduction. By default it is that of the reduced
        loss, or of the sum of the costs if `reduction` is ``"none"``.
    fastemit_lambda : float
        FastEmit regularisation (arXiv 2010.11148): occupancies of labels count ``1 + lambda``
        times in the gradient. The loss stays ``-log P``.
    tolerance : float, optional
        Share of the posterior of each sample that may be left out of its gradient, at least 0 and
        below 1. At most half of it is alignments that the cost leaves out too, as in
        :func:`joint_rnnt_loss`; the rest is cells of little occupancy. The default is the unit
        round-off of the results, 2**-24 (2**-53 for float64): the full loss and gradient to
        working precision. 0 computes and keeps every cell.

    Returns
    -------
    loss : as of :func:`joint_rnnt_loss`
    gradients : JointGradients
        Of `encoder_out`, `predictor_out`, `weight` and `bias`, each in the shape and dtype of its
        argument and of the kind of `encoder_out`; 0 at padding. A sample whose cost is not finite
        contributes nothing.
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
    >>> loss, gradients = cupy_rnnt.joint_rnnt_loss_and_grad(
    ...     *inputs, [[1, 2, 3], [4, 5, 0]], [6, 5], [3, 2])
    >>> [gradient.shape for gradient in gradients]
    [(2, 6, 5), (2, 4, 5), (7, 5), (7,)]
    """
    call = checked(
        encoder_out,
        predictor_out,
        weight,
        bias,
        targets,
        logit_lengths,
        target_lengths,
        blank=blank,
        clamp=clamp,
        reduction=reduction,
        band=band,
        **options,
    )
    with operations_for(call.inputs.encoder_out).device_of(call.inputs.encoder_out):
        source = call.source(gradient=True)
        labels = call.batch.label_counts
        weights = weights_of(call.options.reduction, cost_weights, labels, source.dtype)
        result = run(source, call.batch, call.options, weights)
        gradients = JointGradients(*(exported(g, encoder_out) for g in source.gradients))
        return returned(result, encoder_out, gradients)
