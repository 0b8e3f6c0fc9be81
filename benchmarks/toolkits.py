"""What does a training step of a toolkit's joint network hold, with its own loss and with ours?

One toolkit a run, in an environment that has it: ``python benchmarks/toolkits.py transformers``,
``nemo``, ``espnet`` or ``speechbrain``. It prints the peak of the process above its start, with
gradients of encoder, predictor and joint network, on the CPU in float32. The loss of SpeechBrain
itself needs CUDA; what is printed for it is ours of its logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from common import MIB, peak_resident

Step = Callable[[Any, Any, Any, Any, Any], Any]
HIDDEN, SYMBOLS = 320, 1024
WARM, STEP = (1, 9, 3), (8, 200, 40)  # utterances, frames and labels of each


def transformers() -> dict[str, Step]:
    """TDT, as transformers has no loss of its own for RNN-T; the predictor is the model's."""
    from transformers import ParakeetForTDT, ParakeetTDTConfig
    from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderModelOutput

    from cupy_rnnt.integrations.transformers import patch, unpatch

    config = ParakeetTDTConfig(
        vocab_size=SYMBOLS,
        decoder_hidden_size=HIDDEN,
        num_decoder_layers=1,
        blank_token_id=SYMBOLS - 1,
        pad_token_id=0,
        encoder_config={"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4},
    )
    model = ParakeetForTDT(config)

    def step(change: Callable[[Any], Any]) -> Step:
        def run(encoder_out: Any, _: Any, labels: Any, frames: Any, counts: Any) -> Any:
            mask = torch.ones(encoder_out.shape[:2], dtype=torch.long)
            outputs = ParakeetEncoderModelOutput(encoder_out, encoder_out, attention_mask=mask)
            ids = torch.nn.functional.pad(labels, (1, 0), value=SYMBOLS - 1)
            known = {"encoder_outputs": outputs, "decoder_input_ids": ids, "labels": labels}
            return change(model)(**known).loss

        return run

    return {"with cupy_rnnt": step(patch), "transformers, TDT": step(unpatch)}


def nemo() -> dict[str, Step]:
    from nemo.collections.asr.losses.rnnt import RNNTLoss
    from nemo.collections.asr.modules import RNNTJoint

    from cupy_rnnt.integrations.nemo import RNNTJoint as OurJoint

    def step(kind: Any) -> Step:
        sizes = dict.fromkeys(("encoder_hidden", "pred_hidden", "joint_hidden"), HIDDEN)
        options = {"fuse_loss_wer": True, "fused_batch_size": STEP[0]}
        joint = kind({**sizes, "activation": "relu"}, SYMBOLS - 1, **options)
        joint.set_loss(RNNTLoss(SYMBOLS - 1))
        joint.set_wer(object())
        return lambda encoder_out, predictor_out, labels, frames, counts: joint(
            encoder_outputs=encoder_out.transpose(1, 2),
            decoder_outputs=predictor_out.transpose(1, 2),
            encoder_lengths=frames,
            transcripts=labels,
            transcript_lengths=counts,
        )[0]

    return {"with cupy_rnnt": step(OurJoint), "NeMo": step(RNNTJoint)}


def espnet() -> dict[str, Step]:
    from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba
    from espnet2.asr_transducer.joint_network import JointNetwork

    from cupy_rnnt.integrations.espnet import joint_transducer_loss

    joint = JointNetwork(SYMBOLS, HIDDEN, HIDDEN, HIDDEN)

    def own(encoder_out: Any, predictor_out: Any, *labels: Any) -> Any:
        logits = joint(encoder_out.unsqueeze(2), predictor_out.unsqueeze(1))
        return RNNTLossNumba(blank=0)(logits, *(x.int() for x in labels))

    def ours(*arguments: Any) -> Any:
        return joint_transducer_loss(joint, *arguments)

    return {"with cupy_rnnt": ours, "ESPnet, its loss of Numba": own}


def speechbrain() -> dict[str, Step]:
    sys.modules["torchaudio"] = ModuleType("torchaudio")  # imported for audio files
    sys.modules["torchaudio"].__version__ = "2.11.0"  # type: ignore[attr-defined]
    from speechbrain.nnet.linear import Linear
    from speechbrain.nnet.transducer.transducer_joint import Transducer_joint

    from cupy_rnnt.integrations.speechbrain import joint_transducer_loss, transducer_loss

    joint, layer = Transducer_joint(), Linear(SYMBOLS, input_size=HIDDEN)

    def shares(labels: Any, frames: Any, counts: Any) -> Any:
        return labels, frames / frames.max(), counts / counts.max(), 0

    def own(encoder_out: Any, predictor_out: Any, *labels: Any) -> Any:
        logits = layer(joint(encoder_out.unsqueeze(2), predictor_out.unsqueeze(1)))
        return transducer_loss(logits, *shares(*labels))

    def ours(encoder_out: Any, predictor_out: Any, *labels: Any) -> Any:
        return joint_transducer_loss(encoder_out, predictor_out, layer, *shares(*labels))

    return {"joint_transducer_loss": ours, "transducer_loss of logits": own}


def run(step: Step, utterances: int, frames: int, labels: int) -> None:
    encoder_out = torch.randn(utterances, frames, HIDDEN, requires_grad=True)
    predictor_out = torch.randn(utterances, labels + 1, HIDDEN, requires_grad=True)
    targets = torch.randint(1, SYMBOLS - 1, (utterances, labels))
    counts = torch.full((utterances,), frames), torch.full((utterances,), labels)
    step(encoder_out, predictor_out, targets, *counts).backward()


def main() -> None:
    toolkits = transformers, nemo, espnet, speechbrain
    steps = {toolkit.__name__: toolkit for toolkit in toolkits}[sys.argv[1]]
    for name, step in steps().items():
        torch.manual_seed(0)
        run(step, *WARM)  # what is compiled or imported
        peak, _ = peak_resident(lambda step=step: run(step, *STEP))
        print(f"{name:30} {peak / MIB:6.0f} MiB")


if __name__ == "__main__":
    main()
