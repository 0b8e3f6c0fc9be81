"""The RNN-transducer loss and its gradients, exactly, in a small, fixed workspace.

Importing this package imports NumPy and SciPy, and no framework.
"""

from . import reference
from .additive import additive_rnnt_loss, additive_rnnt_loss_and_grad
from .additive_scores import AdditiveGradients
from .alignment import joint_rnnt_alignment, rnnt_alignment
from .family import multi_blank, tdt
from .joint import joint_rnnt_loss, joint_rnnt_loss_and_grad
from .log_probs import joint_rnnt_log_probs, joint_rnnt_log_probs_grad
from .logits import rnnt_loss, rnnt_loss_and_grad
from .posteriors import joint_rnnt_posteriors, rnnt_posteriors
from .pruning import prune_ranges
from .results import Alignment, Info, JointGradients, KeptPosteriors
from .topology import Arc, Score, Topology
from .transducer import Head, Transducer

__all__ = [
    "AdditiveGradients",
    "Alignment",
    "Arc",
    "Head",
    "Info",
    "JointGradients",
    "KeptPosteriors",
    "Score",
    "Topology",
    "Transducer",
    "additive_rnnt_loss",
    "additive_rnnt_loss_and_grad",
    "joint_rnnt_alignment",
    "joint_rnnt_log_probs",
    "joint_rnnt_log_probs_grad",
    "joint_rnnt_loss",
    "joint_rnnt_loss_and_grad",
    "joint_rnnt_posteriors",
    "multi_blank",
    "prune_ranges",
    "reference",
    "rnnt_alignment",
    "rnnt_loss",
    "rnnt_loss_and_grad",
    "rnnt_posteriors",
    "tdt",
]
__version__ = "0.2.0"
