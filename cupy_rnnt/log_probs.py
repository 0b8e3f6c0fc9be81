"""The scores of the cells of a joint network, and the gradient of any function of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import checks
from .dlpack import exported
from .engine.scores import Scores
from .joint import JointCall, checked
from .ops import operations_for
from .ops.types import ArrayLike, Shape, compute_dtype
from .options import ScoreKeywords, spells_out
from .progress import Progress
from .results import JointGradients

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Keywords(ScoreKeywords, total=False):
    """What the functions of this module take by keyword."""

    progress: Progress | bool | None


def _shape_of(call: JointCall) -> Shape:
    """The shape (B, T, U + 1, K) of the scores."""
    size, frames, _ = call.inputs.encoder_out.shape
    positions = call.inputs.predictor_out.shape[1]
    return size, frames, positions, len(call.options.transducer.topology.scores)


@spells_out(Keywords)
def joint_rnnt_log_probs(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    **options: Unpack[Keywords],
) -> Any:
    """Log-probabilities of blank and next label in every cell of a joint network.

    All that a function of the lattice needs is in them: losses of one's own, distillation,
    consistency, expected risks. The logits are computed a tile at a time and never held.

    Parameters
    ----------
    encoder_out, predictor_out, weight, bias, targets, logit_lengths, target_lengths, blank, \
activation, dropout, seed, transducer, max_workspace_bytes, progress
        As for :func:`joint_rnnt_loss`. The workspace holds some tiles, and beside them a few
        vectors of length H for each frame and position of one sample.

    Returns
    -------
    log_probs : of the kind of `encoder_out`, shape (B, T, U + 1, K)
        float32, or float64 for float64 inputs. The K scores are those of ``topology.scores`` of the
        transducer, in this order: the blank and the next label, unless another transducer is
        chosen. They are 0 at padding. So is that of the label at the last position of a sample,
        which no label leaves: a recursion over the padded lattice meets no infinity, and terms such
        as ``p * log(p)`` are 0 there. Sums of probabilities need a mask.

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`joint_rnnt_loss` does.

    See Also
    --------
    joint_rnnt_log_probs_grad

    Examples
    --------
    With zeros for inputs, each of the 7 symbols is as probable as the others:

    >>> import numpy as np, cupy_rnnt
    >>> inputs = [np.zeros(shape) for shape in [(2, 6, 5), (2, 4, 5), (7, 5)]]
    >>> log_probs = cupy_rnnt.joint_rnnt_log_probs(
    ...     *inputs, None, [[1, 2, 3], [4, 5, 0]], [6, 5], [3, 2])
    >>> log_probs.shape
    (2, 6, 4, 2)
    >>> np.exp(log_probs[0, 0]) * 7  # no label leaves the last position
    array([[1., 1.],
           [1., 1.],
           [1., 1.],
           [1., 7.]])
    """
    lattice = targets, logit_lengths, target_lengths
    call = checked(encoder_out, predictor_out, weight, bias, *lattice, blank=blank, **options)
    ops = operations_for(call.inputs.encoder_out)
    with ops.device_of(call.inputs.encoder_out):
        out = ops.zeros(_shape_of(call), compute_dtype(call.inputs.encoder_out.dtype))
        Scores(call.source(gradient=False), call.batch, call.options, gradient=False).write(out)
        return exported(out, encoder_out)


@spells_out(Keywords)
def joint_rnnt_log_probs_grad(
    encoder_out: ArrayLike,
    predictor_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    *,
    grad: ArrayLike,
    **options: Unpack[Keywords],
) -> JointGradients:
    """Gradients of any function of the scores with respect to the inputs of the joint network.

    Takes the parameters of :func:`joint_rnnt_log_probs`, and the gradient of the function with
    respect to its result. Cells without a gradient take no time. Lists of a few tiles of cells are
    added to the workspace.

    Parameters
    ----------
    grad : likewise, shape (B, T, U + 1, K)
        float32, or float64 for float64 inputs, on the device of `encoder_out`. Padding is ignored,
        and so is the label at the last position of a sample; both may hold NaN. An element below
        2**-75 of the largest counts as 0.

    Returns
    -------
    gradients : JointGradients
        Of `encoder_out`, `predictor_out`, `weight` and `bias`, each in the shape and dtype of its
        argument and of the kind of `encoder_out`; 0 at padding.

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`joint_rnnt_loss` does, and for a `grad` of another shape, dtype or device than the
        scores have.

    Examples
    --------
    The sum of the log-probabilities of all blanks has these gradients:

    >>> import numpy as np, cupy_rnnt
    >>> rng = np.random.default_rng(0)
    >>> inputs = [rng.standard_normal(shape) for shape in [(2, 6, 5), (2, 4, 5), (7, 5), (7,)]]
    >>> lattice = [[1, 2, 3], [4, 5, 0]], [6, 5], [3, 2]
    >>> grad = np.zeros((2, 6, 4, 2))
    >>> grad[..., 0] = 1
    >>> gradients = cupy_rnnt.joint_rnnt_log_probs_grad(*inputs, *lattice, grad=grad)
    >>> [gradient.shape for gradient in gradients]
    [(2, 6, 5), (2, 4, 5), (7, 5), (7,)]
    """
    lattice = targets, logit_lengths, target_lengths
    call = checked(encoder_out, predictor_out, weight, bias, *lattice, blank=blank, **options)
    inputs = call.inputs
    upstream = checks.floats("grad", grad, ("B", "T", "U + 1", "K"))
    dtype = compute_dtype(inputs.encoder_out.dtype)
    if upstream.dtype != dtype:
        text = f"grad has dtype {upstream.dtype}, but {dtype} is needed, as of the scores"
        raise TypeError(text)
    checks.shape("grad", upstream, _shape_of(call))
    checks.same_device(encoder_out=inputs.encoder_out, grad=upstream)
    with operations_for(inputs.encoder_out).device_of(inputs.encoder_out):
        source = call.source(gradient=True)
        Scores(source, call.batch, call.options, gradient=True).add_gradient(upstream)
        return JointGradients(*(exported(g, encoder_out) for g in source.gradients))
