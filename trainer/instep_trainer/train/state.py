"""The whole training state as named tensors, the same set before the first step as after the last."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give parameters, buffers and AdamW's state by name; the tensors are the live ones, so copying into them loads a
    state.

    AdamW makes its state at its first step; it is made here instead, as it would be there, so that the set never
    changes.
    """
    state = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    state |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        moments["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        moments["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
    return state


def reseed(seed: int, step: int, rank: int) -> None:
    """Set torch's generators to a pure function of the three, so that dropout at a step does not depend on the steps
    before it.

    That makes the counter (step) the whole of the generator's state: a rank that receives its state from another
    node needs nothing that only the lost one knew.
    """
    name = f"{seed}/{step}/{rank}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
