"""The additive loss for JAX: its callback, and the function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import additive_scores, checks
from ..additive_scores import AdditiveCall, AdditiveGradients, Forms
from ..batch import BandLike
from ..ops.types import ArrayLike, DeviceArray, Shape, compute_dtype
from ..options import Keywords, spells_out
from .arguments import arrays_of, integers_of, stand_ins
from .callbacks import Arrays, Loss
from .differentiated import everywhere, loss_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class AdditiveLoss(Loss):
    """The loss of sums of logits."""

    lm_scale: float
    am_scale: float
    returns_occupancies: bool

    names = AdditiveGradients._fields
    rank = 3
    batched = 2

    @property
    def mixes(self) -> bool:
        return self.am_scale != 0  # the unigram is that of the batch

    def shapes(self, inputs: Any, integers: Any) -> tuple[Shape, ...]:
        am, lm = inputs
        count = len(self.options.transducer.topology.scores)
        of_occupancies = [(*am.shape[:2], lm.shape[1], count)] * self.returns_occupancies
        return *super().shapes(inputs, integers), *of_occupancies

    def checked(self, arguments: dict[str, Any]) -> AdditiveCall:
        scales = {"lm_scale": self.lm_scale, "am_scale": self.am_scale}
        return additive_scores.checked(**(arguments | scales))

    def _compute(
        self,
        mapped: Shape,
        results: Arrays,
        gradients: Arrays | None,
        inputs: Arrays,
        integers: Arrays,
        weights: DeviceArray,
    ) -> None:
        call = self.checked(self._named(inputs, integers))
        forms, dtype = Forms.of(call), compute_dtype(call.am.dtype)
        keep = gradients is not None or len(results) > 1
        costs, d_scores = additive_scores.solved(call, forms, keep)
        labels = call.batch.label_counts.reshape(*mapped, -1)
        if results:
            results[0][...] = self._reduced(costs, labels, dtype)
        for occupancies in results[1:]:
            values = additive_scores.occupancies(d_scores, dtype)
            occupancies[...] = values.reshape(occupancies.shape)
        if gradients is not None:
            for gradient in gradients:
                gradient.fill(0)
            weights = call.ops.asarray(self._weights(weights, labels, dtype))
            out = AdditiveGradients(*gradients)
            additive_scores.write_gradients(call, forms, d_scores, weights, out)


@spells_out(Keywords)
def additive_rnnt_loss(
    am: ArrayLike,
    lm: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = -1,
    reduction: str = "mean",
    *,
    lm_scale: float = 0.0,
    am_scale: float = 0.0,
    return_occupancies: bool = False,
    band: BandLike = None,
    **options: Unpack[Keywords],
) -> Any:
    """RNN-transducer loss of sums of logits: :func:`cupy_rnnt.additive_rnnt_loss` for JAX.

    Parameters
    ----------
    am : jax.Array, shape (B, T, V)
        float16, bfloat16, float32 or float64, as `lm`.
    lm : jax.Array, shape (B, U + 1, V)
    targets : array_like, shape (B, U), any integer dtype
    logit_lengths, target_lengths : array_like, shape (B,), any integer dtype
    blank, reduction, lm_scale, am_scale, transducer, delay_penalty, fastemit_lambda, \
zero_infinity, tolerance, max_workspace_bytes
        As for :func:`cupy_rnnt.additive_rnnt_loss_and_grad`; Python values, which are static under
        ``jax.jit``.
    return_occupancies : bool
        Whether to return the occupancies of the scores as well.
    band : (first, width), optional
        As for :func:`cupy_rnnt.rnnt_loss`; `first` and `width` may be traced.

    Returns
    -------
    loss : jax.Array, shape () or, if `reduction` is ``"none"``, (B,)
    occupancies : jax.Array, shape (B, T, U + 1, K)
        Only if `return_occupancies` is true. Nothing is differentiated through them.

    Raises
    ------
    ValueError, TypeError, jax.errors.JaxRuntimeError
        As :func:`rnnt_loss` does.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cupy_rnnt.jax
    >>> batch = jnp.array([[1]]), jnp.array([2]), jnp.array([1])
    >>> am = lm = jnp.zeros((1, 2, 3))
    >>> loss = lambda lm: cupy_rnnt.jax.additive_rnnt_loss(am, lm, *batch, blank=0)
    >>> jax.jit(jax.grad(loss))(lm)[0, 0, 1:].round(5)
    Array([-0.5,  0.5], dtype=float32)
    """
    wanted = checks.boolean("return_occupancies", return_occupancies)
    inputs = arrays_of(AdditiveLoss.names, am, lm)
    integers = integers_of(targets, logit_lengths, target_lengths, band)
    call = additive_scores.checked(
        **stand_ins(AdditiveLoss, inputs, integers),
        lm_scale=lm_scale,
        am_scale=am_scale,
        blank=blank,
        reduction=reduction,
        **options,
    )
    loss = AdditiveLoss(call.options, call.scales.lm, call.scales.am, wanted)
    results = everywhere(loss_of, loss, inputs, integers)
    return results if wanted else results[0]
