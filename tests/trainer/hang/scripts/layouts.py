"""Run as a rank: trains a tiny model in the layout that the plan names for this attempt, until it is ended.

A plan is a list `LAYOUT[:OPTION…]`, one for each attempt in turn. Options: `middle` has drills strike between two
collectives of the forward pass instead of before it (in a pipeline of sends: between two micro-batches); `inner` lets a
skipping drill leave out a collective (or a send) of the layout itself instead of the one on the loss; `world` has the
loss take the default group; `pause` has rank 0 evaluate for a while after step 12, as its peers wait.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from instep_trainer.phases import finish_step, phase, recorder
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

WIDTH, BATCH, BLOCKS, MICRO_BATCHES = 32, 8, 4, 4
WORK_SECONDS = 0.008
"""A rank's own work in one forward pass, on top of the arithmetic."""
PAUSED_AFTER_STEP = 12
PAUSE_SECONDS = 3.0
STEPS = 1_000_000

plan = sys.argv[1].split(",")
LAYOUT, *options = plan[int(os.environ["INSTEP_ATTEMPT"]) % len(plan)].split(":")
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Block(nn.Module):
    """Two layers, with a place for drills before them."""

    def __init__(self, *, has_fault_point: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.has_fault_point = has_fault_point

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.has_fault_point and "middle" in options:
            recorder().fault_point("forward")
        return values + self.down(torch.relu(self.up(values)))


def model(blocks: int = BLOCKS) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*[Block(has_fault_point=number == blocks // 2) for number in range(blocks)])


def may_skip(where: str) -> bool:
    """Whether a drill has this collective left out; asked at one place of a step only."""
    return where == ("inner" if "inner" in options else "loss") and recorder().fault_point("metrics")


def begin_forward() -> None:
    if "middle" not in options:
        recorder().fault_point("forward")
    time.sleep(WORK_SECONDS)


def batch() -> torch.Tensor:
    return torch.randn(BATCH, WIDTH)


def one_pass(net: nn.Module, optimizer: torch.optim.Optimizer, between: Callable[[], None] = lambda: None) -> None:
    with phase("data"):
        values = batch()
    with phase("forward"):
        begin_forward()
        loss = net(values).square().mean()
    with phase("backward"):
        loss.backward()
    between()
    with phase("optimizer"):
        optimizer.step()
        optimizer.zero_grad()


def fsdp() -> Callable[[], None]:
    net = model()
    for block in net:
        fully_shard(block)
    fully_shard(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    return lambda: one_pass(net, optimizer, lambda: None if may_skip("inner") else dist.barrier())


def split(net: nn.Sequential, mesh) -> nn.Module:
    for block in net:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return net


def tensor() -> Callable[[], None]:
    mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("tp",))
    net = split(model(), mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    extra = torch.zeros(1)

    def clip() -> None:
        if not may_skip("inner"):
            dist.all_reduce(extra, group=mesh.get_group())

    return lambda: one_pass(net, optimizer, clip)


def tensor_data() -> Callable[[], None]:
    """TP × DP with gradients summed by hand, asynchronously."""
    extra = torch.zeros(1)
    mesh = init_device_mesh("cpu", (2, WORLD // 2), mesh_dim_names=("dp", "tp"))
    net = split(model(), mesh["tp"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def sum_gradients() -> None:
        with phase("backward"):
            works = []
            for parameter in net.parameters():
                gradient = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
                works.append(dist.all_reduce(gradient, group=mesh.get_group("dp"), async_op=True))
            for work in works:
                work.wait()
        if not may_skip("inner"):
            dist.all_reduce(extra, group=mesh.get_group("dp"))

    return lambda: one_pass(net, optimizer, sum_gradients)


def fsdp_tensor() -> Callable[[], None]:
    mesh = init_device_mesh("cpu", (2, WORLD // 2), mesh_dim_names=("dp", "tp"))
    net = split(model(), mesh["tp"])
    for block in net:
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(net, mesh=mesh["dp"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    extra = torch.zeros(1)

    def clip() -> None:
        if not may_skip("inner"):
            dist.all_reduce(extra, group=mesh.get_group("tp"))

    return lambda: one_pass(net, optimizer, clip)


def pipeline() -> Callable[[], None]:
    """torch's own 1F1B over all ranks."""
    torch.manual_seed(RANK)
    block = Block(has_fault_point=True)
    stage = PipelineStage(block, RANK, WORLD, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=nn.functional.mse_loss)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.01)

    def run() -> None:
        with phase("data"):
            values = batch()
        with phase("forward"):
            begin_forward()
            arguments = (values,) if RANK == 0 else ()
            schedule.step(*arguments, **({"target": values} if RANK == WORLD - 1 else {}))
        with phase("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    return run


def stages(members: list[int] | None = None, group: dist.ProcessGroup | None = None) -> Callable[[], None]:
    """Blocking sends and receives by hand: all micro-batches forward, then all back."""
    members = members or list(range(WORLD))
    place = members.index(RANK)
    before, after = members[place - 1] if place else None, members[place + 1] if place + 1 < len(members) else None
    block = Block()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.01)

    def forward(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.randn(BATCH, WIDTH)
        if before is not None:
            dist.recv(values, before, group=group)
        if number == 1 and "middle" in options:
            recorder().fault_point("forward")
        values.requires_grad_()
        out = block(values)
        if after is not None and not (number == 1 and may_skip("inner")):
            dist.send(out.detach(), after, group=group)
        return values, out

    def backward(values: torch.Tensor, out: torch.Tensor) -> None:
        gradient = torch.ones_like(out)
        if after is not None:
            dist.recv(gradient, after, group=group)
        out.backward(gradient)
        if before is not None:
            dist.send(values.grad, before, group=group)

    def run() -> None:
        with phase("forward"):
            begin_forward()
            passed = [forward(number) for number in range(MICRO_BATCHES)]
        with phase("backward"):
            for values, out in passed:
                backward(values, out)
        with phase("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    run.parameters = list(block.parameters())
    return run


def stages_data() -> Callable[[], None]:
    """Pipelines of two stages, side by side; gradients are summed between them."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    pipe = mesh.get_group("pp")
    run = stages(dist.get_process_group_ranks(pipe), pipe)

    def both() -> None:
        run()
        with phase("backward"):
            for parameter in run.parameters:
                dist.all_reduce(parameter.detach(), group=mesh.get_group("dp"))

    return both


def any_source() -> Callable[[], None]:
    """Rank 0 takes what the others send, in whatever order it comes."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    message = torch.zeros(WIDTH)

    def exchange() -> None:
        for _ in range(MICRO_BATCHES):
            if RANK == 0:
                for _sender in range(WORLD - 1):
                    dist.recv(message)
            else:
                dist.send(message, 0)

    return lambda: one_pass(net, optimizer, exchange)


LAYOUTS = {"fsdp": fsdp, "tensor": tensor, "tensor-data": tensor_data, "fsdp-tensor": fsdp_tensor,
           "pipeline": pipeline, "stages": stages, "stages-data": stages_data,
           "any-source": any_source}  # fmt: skip


def main() -> None:
    recorder().annotate()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    metrics = None if "world" in options else dist.new_group()
    run = LAYOUTS[LAYOUT]()
    loss = torch.zeros(1)
    for step in range(1, STEPS + 1):
        run()
        if not may_skip("loss"):
            dist.all_reduce(loss, group=metrics)
        finish_step(step)
        if "pause" in options and step == PAUSED_AFTER_STEP and RANK == 0:
            with phase("evaluation"):
                time.sleep(PAUSE_SECONDS)


main()
