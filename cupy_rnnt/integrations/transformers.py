"""Transducers of Hugging Face's transformers, trained without their logits.

>>> from cupy_rnnt.integrations.transformers import patch  # doctest: +SKIP
>>> model = patch(ParakeetForTDT.from_pretrained("nvidia/parakeet-tdt-0.6b-v3"))  # doctest: +SKIP

From then on, ``model(..., labels=labels).loss`` is computed from the inputs of the joint network
and from its output layer, and ``.logits`` is None. Without labels nothing changes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor

from ..family import tdt
from ..torch import joint_rnnt_loss
from .layers import reduced, weight_and_bias

__all__ = ["MODELS", "patch", "unpatch"]

MODELS = {
    "ParakeetForRNNT": "mean_volume",
    "ParakeetForTDT": "mean",
    "NemotronAsrStreamingForRNNT": "mean_volume",
    "Nemotron3_5AsrForRNNT": "mean_volume",
}
"""The models that can be patched, by class, and the reduction that each has by default."""
REDUCTIONS = "mean_volume", "mean_batch", "mean", "sum", "none"
"""Those of transformers. The first two are ``"mean_volume"`` and ``"mean"`` of this package;
``"mean"`` is the mean of the costs, each divided by the number of its labels."""

_ACTIVATIONS = {
    "tanh": "tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "linear": "identity",
    "leaky_relu": "leaky_relu",
}
_IGNORED = -100  # of labels, as everywhere in transformers
_PATCH = "_cupy_rnnt"
Model = TypeVar("Model", bound=torch.nn.Module)


def patch(model: Model, *, reduction: str | None = None, **options: Any) -> Model:
    """Let a model compute its loss without its logits, with all gradients, for given labels.

    The model is changed, not copied. Its parameters, their names, its configuration and what it
    computes without labels stay. The last labels of a sample are padding if they are the blank, the
    ``pad_token_id`` (not of RNN-T of Parakeet, as in transformers) or -100. Two arguments may be
    left out: ``decoder_input_ids`` are then the blank and the labels, and ``attention_mask`` then
    takes all frames.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        One of `MODELS`.
    reduction : {"mean_volume", "mean_batch", "mean", "sum", "none"}, optional
        As in transformers, where ``"mean_volume"`` is the default of RNN-T and ``"mean"`` that of
        TDT; ``model(..., reduction=...)`` has precedence. A sample without labels counts in
        ``"mean"`` as if it had one.
    **options
        Those of :func:`cupy_rnnt.torch.joint_rnnt_loss`, such as ``fastemit_lambda``, ``clamp`` or
        ``max_workspace_bytes``.

    Returns
    -------
    model

    Raises
    ------
    TypeError
        If the class of the model is not known, or its output layer is no ``torch.nn.Linear``.
    ValueError
        If its activation is not known, or `reduction` is none of those above.

    Examples
    --------
    .. code-block:: python

        model = patch(ParakeetForTDT.from_pretrained("nvidia/parakeet-tdt-0.6b-v3"))
        model(**features, labels=labels).loss.backward()
    """
    unpatch(model)
    patched = _Patch(model, reduction, options)
    model.forward = functools.wraps(model.forward)(patched)
    setattr(model, _PATCH, patched)
    return model


def unpatch(model: Model) -> Model:
    """Take back what :func:`patch` has done to a model, if anything.

    Examples
    --------
    .. code-block:: python

        model = unpatch(model)
    """
    patched = vars(model).get(_PATCH)
    if patched is not None:
        patched.enabled = False  # where something else has wrapped it since
        if vars(model)["forward"] is patched:
            del model.forward
            if patched.replaced is not None:
                model.forward = patched.replaced
        delattr(model, _PATCH)
    return model


def _known(model: Any) -> str:
    names = [kind.__name__ for kind in type(model).__mro__]
    for name in names:
        if name in MODELS:
            return name
    known = ", ".join(MODELS)
    raise TypeError(
        f"model is a {type(model).__name__}, but one of {known} is needed; transformers 5.24 has "
        f"them all, and this is {transformers.__version__}"
    )


class _Patch:
    """The forward method of a patched model."""

    def __init__(self, model: Any, reduction: str | None, options: dict[str, Any]) -> None:
        name = _known(model)
        self.enabled, self.replaced = True, vars(model).get("forward")
        self._model, self._forward = model, model.forward
        self._signature = inspect.signature(self._forward)
        self._reduction = _checked_reduction(MODELS[name] if reduction is None else reduction)
        inspect.signature(joint_rnnt_loss).bind_partial(**options)  # refuses unknown ones
        self._options = options
        config = model.config
        weight_and_bias("model.joint.head", model.joint.head)  # refuses other layers
        if config.hidden_act not in _ACTIVATIONS:
            raise ValueError(
                f"model.config.hidden_act is {config.hidden_act!r}, but one of "
                f"{', '.join(_ACTIVATIONS)} is needed"
            )
        self._activation = _ACTIVATIONS[config.hidden_act]
        self._blank: int = config.blank_token_id
        self._padding = {self._blank, _IGNORED}
        if name != "ParakeetForRNNT":
            self._padding.add(config.pad_token_id)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = self._signature.bind(*args, **kwargs).arguments
        labels = named.get("labels")
        if labels is None or not self.enabled:
            return self._forward(*args, **kwargs)
        named |= named.pop("kwargs", {})
        features = named.get("input_features")
        if named.get("attention_mask") is None and features is not None:
            named["attention_mask"] = features.new_ones(features.shape[:2], dtype=torch.long)
        if named.get("decoder_input_ids") is None:
            begin = labels.new_full((len(labels), 1), self._blank)
            ids = labels.masked_fill(labels == _IGNORED, self._blank)
            named["decoder_input_ids"] = torch.cat([begin, ids], dim=1)
        as_tuple = named.get("return_dict") is False
        with self._without_logits():
            output = self._forward(**named | {"return_dict": True})
        output.logits = None
        return output.to_tuple() if as_tuple else output

    @contextmanager
    def _without_logits(self) -> Iterator[None]:
        """A context in which the joint network keeps its inputs instead of computing logits, and
        the model's loss function takes these inputs."""
        model, joint = self._model, self._model.joint
        inputs: list[Tensor] = []

        def forward(decoder_hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            inputs[:] = encoder_hidden_states[:, :, 0], decoder_hidden_states[:, 0]
            (size, frames, _), positions = inputs[0].shape, inputs[1].shape[1]
            shape = size, frames, positions, joint.head.out_features
            return inputs[0].new_zeros(()).expand(shape)  # takes no memory

        before = {
            (module, name): vars(module)[name]
            for module, name in ((model, "_loss_function"), (joint, "forward"))
            if name in vars(module)
        }
        joint.forward = forward
        model._loss_function = lambda **named: self._loss(*inputs, **named)
        try:
            yield
        finally:
            del joint.forward, model._loss_function
            for (module, name), value in before.items():
                setattr(module, name, value)

    def _loss(
        self,
        encoder: Tensor,
        decoder: Tensor,
        *,
        labels: Tensor,
        logit_lengths: Tensor | None = None,
        encoder_outputs: Any = None,
        durations: Any = None,
        sigma: float = 0.0,
        reduction: str | None = None,
        **_: Any,
    ) -> Tensor:
        """What a model calls in the place of its loss function. Parakeet passes lengths, Nemotron
        the outputs of its encoder."""
        if logit_lengths is None:
            logit_lengths = encoder_outputs.attention_mask.sum(-1)
        reduction = self._reduction if reduction is None else _checked_reduction(reduction)
        lengths = self._label_lengths(labels)
        options = {"activation": self._activation, **self._options}
        if durations is not None:
            options["transducer"] = tdt(durations, sigma)
        head = self._model.joint.head
        loss = functools.partial(
            joint_rnnt_loss,
            encoder,
            decoder,
            head.weight,
            head.bias,
            labels.masked_fill(labels < 0, 0),
            logit_lengths,
            lengths,
            blank=self._blank,
            **options,
        )
        return reduced(loss, reduction, lengths)

    def _label_lengths(self, labels: Tensor) -> Tensor:
        """Up to the last label that is no padding."""
        is_label = torch.ones_like(labels, dtype=torch.bool)
        for number in self._padding:
            is_label &= labels != number
        ends = torch.arange(1, labels.shape[1] + 1, device=labels.device)
        return (ends * is_label).amax(dim=1) if labels.shape[1] else labels.new_zeros(len(labels))


def _checked_reduction(reduction: Any) -> str:
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction is {reduction!r}, but one of {', '.join(REDUCTIONS)} is needed"
        )
    return str(reduction)
