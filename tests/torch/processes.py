"""What each process of the tests of many devices does; see test_torch_distributed.py.

All processes make the same model and the whole batch, and hold the gradients of their shares
against those that a single process has of the whole.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import cupy_rnnt.torch

FEATURES, HIDDEN, VOCABULARY = 3, 8, 6
FRAMES = torch.tensor([7, 9, 4, 1, 6, 2])
LABELS = torch.tensor([3, 4, 0, 2, 1, 2])
TOLERANCE = {"rtol": 0, "atol": 1e-12}  # float64, gradients of order 1


class Model(torch.nn.Module):
    def __init__(self, reduction):
        super().__init__()
        self.encoder = torch.nn.Linear(FEATURES, HIDDEN)
        self.predictor = torch.nn.Embedding(VOCABULARY, HIDDEN)
        output = torch.nn.Linear(HIDDEN, VOCABULARY)
        self.loss = cupy_rnnt.torch.JointRNNTLoss(0, reduction=reduction, output=output)

    def forward(self, frames, targets, *lengths):
        history = torch.nn.functional.pad(targets, (1, 0))
        return self.loss(self.encoder(frames), self.predictor(history), targets, *lengths)


def model(reduction="sum"):
    torch.manual_seed(0)
    return Model(reduction).double()


def batch(samples):
    """Some samples, padded to the longest of them."""
    torch.manual_seed(1)
    frames = torch.randn(len(FRAMES), int(FRAMES.max()), FEATURES, dtype=torch.float64)
    targets = torch.randint(1, VOCABULARY, (len(LABELS), int(LABELS.max())))
    lengths = FRAMES[samples], LABELS[samples]
    longest = [int(values.max()) for values in lengths]
    return frames[samples, : longest[0]], targets[samples, : longest[1]], *lengths


def share(count):
    """Of the first samples, those of this process; they may be none."""
    return list(range(dist.get_rank(), count, dist.get_world_size()))


def gradients(module):
    """The whole of each, wherever its parts are."""
    grads = [parameter.grad for parameter in module.parameters()]
    return [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in grads]


def of_one_process(count):
    """Gradients of the mean cost of the first samples."""
    alone = model()
    (alone(*batch(list(range(count)))) / count).backward()
    return gradients(alone)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(one, other, **TOLERANCE)


def distributed():
    return DistributedDataParallel(model())


def sharded(reduction="sum"):
    """Parameters are in parts, here and in the loss; they are gathered for each pass."""
    module = model(reduction)
    fully_shard(module.loss, reshard_after_forward=True)
    return fully_shard(module, reshard_after_forward=True)


def uneven_shares(wrapped):
    """Processes have different numbers of samples, of different lengths."""
    count = len(FRAMES)
    scale = dist.get_world_size() / count  # the mean over processes is taken of their gradients
    (wrapped(*batch(share(count))) * scale).backward()
    assert_same(gradients(wrapped), of_one_process(count))


def nothing_left(wrapped):
    """The last process has no sample left: it takes one, and counts it 0 times."""
    count = dist.get_world_size() - 1
    mine = share(count)
    assert bool(mine) == (dist.get_rank() < count)
    scale = dist.get_world_size() / count
    (wrapped(*batch(mine or [0])) * scale * bool(mine)).backward()
    assert_same(gradients(wrapped), of_one_process(count))


def accumulated(wrapped):
    """Gradients of two batches are added up, and exchanged once."""
    count = len(FRAMES)
    mine, scale = share(count), dist.get_world_size() / count
    with wrapped.no_sync():
        (wrapped(*batch(mine[:1])) * scale).backward()
    weight = scale * bool(mine[1:])
    (wrapped(*batch(mine[1:] or [0])) * weight).backward()
    assert_same(gradients(wrapped), of_one_process(count))


def fewer_batches():
    """Processes have different numbers of batches; those that are done join in with the others."""
    wrapped = distributed()
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    with Join([wrapped]):
        for sample in range(dist.get_rank() + 1):
            optimizer.zero_grad()
            wrapped(*batch([sample])).backward()
            optimizer.step()
    for parameter in wrapped.parameters():
        first = parameter.detach().clone()
        dist.broadcast(first, dist.get_world_size() - 1)
        torch.testing.assert_close(parameter.detach(), first, **TOLERANCE)


def costs_of_a_sharded_model():
    """The costs themselves, reduced by the caller."""
    wrapped = sharded("none")
    count = len(FRAMES)
    (wrapped(*batch(share(count))).sum() * dist.get_world_size() / count).backward()
    assert_same(gradients(wrapped), of_one_process(count))


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    for wrap in distributed, sharded:
        uneven_shares(wrap())
        nothing_left(wrap())
    accumulated(distributed())
    fewer_batches()
    costs_of_a_sharded_model()
    (folder / f"done{rank}").touch()
    dist.destroy_process_group()
