"""Run as a rank: takes one path after another, and writes what the record and torch's flight recorder each saw of
it."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from instep_agent.rank_record import RecordReader
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

environment = os.environ
record = Path(
    environment["INSTEP_RECORD_ROOT"],
    environment["INSTEP_NODE_NAME"],
    environment["INSTEP_RUN"],
    environment["INSTEP_ATTEMPT"],
    environment["RANK"],
)
POINT_TO_POINT = ("send", "recv", "recv_any_source")


def recorded() -> list[str]:
    with RecordReader(record) as reader:
        return [entry.op.name for entry in reader.read().collectives]


def flight_recorded() -> list[str]:
    trace = json.loads(torch._C._distributed_c10d._dump_fr_trace_json(includeCollectives=True, onlyActive=False))
    return [entry["profiling_name"].removeprefix("gloo:") for entry in trace.get("entries", [])]


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def train(net: nn.Module) -> None:
    net(torch.randn(2, 8)).sum().backward()


def own_hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


def ddp_with_own_hook() -> None:
    net = DistributedDataParallel(model())
    net.register_comm_hook(None, own_hook)
    train(net)


def tensor_parallel() -> None:
    net = parallelize_module(
        model(), init_device_mesh("cpu", (dist.get_world_size(),)), {"0": ColwiseParallel(), "1": RowwiseParallel()}
    )
    train(net)


def point_to_point() -> None:
    tensor = torch.zeros(4)
    if dist.get_rank() == 0:
        dist.send(tensor, 1)
        dist.recv(tensor, 1)
    else:
        dist.recv(tensor, 0)
        dist.send(tensor, 0)


def in_inference_mode() -> None:
    with torch.inference_mode():
        dist.all_reduce(torch.ones(2))


PATHS = {
    "dist": lambda: dist.all_reduce(torch.ones(4)),
    "ddp": lambda: train(DistributedDataParallel(model())),
    "ddp with the script's own hook": ddp_with_own_hook,
    "fsdp2": lambda: train(fully_shard(model())),
    "functional": lambda: functional.all_reduce(torch.ones(4), "sum", dist.group.WORLD).wait(),
    "tensor parallel": tensor_parallel,
    "object": lambda: dist.all_gather_object([None] * dist.get_world_size(), "x"),
    "inference mode": in_inference_mode,
    "barrier": dist.barrier,
    "point to point": point_to_point,
}

dist.init_process_group("gloo")
seen = {}
for name, path in PATHS.items():
    before, before_there = len(recorded()), len(flight_recorded())
    path()
    seen[name] = {"record": recorded()[before:], "flight_recorder": flight_recorded()[before_there:]}
dist.barrier()
Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(seen))
dist.destroy_process_group()
