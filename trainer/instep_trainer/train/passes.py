"""Batches as tensors, and the passes beside the training step: those discarded at start, and evaluation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instep_trainer.train.config import TrainConfig
from instep_trainer.train.data import Corpus

DISCARDED_PASSES = 2
"""DDP rebuilds its buckets after its first backward pass, which changes gloo's order of summation from the second on.
Passes made before the state is loaded, in every attempt, leave the same buckets everywhere: measured, without them a
resume on 4 ranks differs by up to 9.5e-7 in the loss."""


def discard_passes(replica: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Run forward and backward `DISCARDED_PASSES` times and forget the gradients."""
    tokens = torch.zeros(config.batch_size, config.model.sequence_length, dtype=torch.int64, device=device)
    for _ in range(DISCARDED_PASSES):
        replica(tokens, tokens).backward()
        replica.zero_grad()


def training_batch(
    corpus: Corpus, config: TrainConfig, step: int, rank: int, *, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Give tokens and targets, each (batch, length), of one step of one rank."""
    length = config.model.sequence_length
    offsets = corpus.offsets(config.seed, step, rank, count=config.batch_size, length=length)
    return _at(corpus, offsets, length, device)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    corpus: Corpus,
    config: TrainConfig,
    rank: int,
    *,
    device: torch.device,
    metrics: dist.ProcessGroup,
) -> float:
    """Give the mean loss over held-out text on all ranks."""
    length = config.model.sequence_length
    model.eval()
    losses = []
    for batch in range(config.evaluate_batches):
        offsets = corpus.held_out_offsets(batch, rank, count=config.batch_size, length=length)
        losses.append(model(*_at(corpus, offsets, length, device)))
    model.train()
    return mean_over_ranks(torch.stack(losses).mean(), metrics)


@torch.no_grad()
def mean_over_ranks(loss: Tensor, metrics: dist.ProcessGroup) -> float:
    """Give the mean over the group, the same on every rank."""
    mean = loss.detach().double() / dist.get_world_size(metrics)
    dist.all_reduce(mean, group=metrics)
    return float(mean.item())


def _at(corpus: Corpus, offsets: list[int], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    text = b"".join(corpus.text[offset : offset + length + 1] for offset in offsets)
    flat = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device, torch.int64)
    pairs = flat.reshape(len(offsets), length + 1)
    return pairs[:, :-1], pairs[:, 1:]
