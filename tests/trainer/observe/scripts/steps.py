"""Run as a rank: two accumulated micro-steps, then two optimizers in one step, then an evaluation, then a skipped
step."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
net = DistributedDataParallel(torch.nn.Linear(8, 8))
weight = torch.optim.SGD([net.module.weight], lr=0.1)
bias = torch.optim.SGD([net.module.bias], lr=0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0)


def loss() -> torch.Tensor:
    return net(torch.randn(4, 8)).square().mean()


for _ in range(2):  # one step of two micro-steps
    loss().backward()
weight.step()
for _ in range(3):  # three steps of two optimizers
    loss().backward()
    weight.step()
    bias.step()
with torch.no_grad():  # an evaluation is no step
    net(torch.randn(4, 8))
net.zero_grad()
scaler.scale(loss() * float("inf")).backward()  # a step that the scaler skips
scaler.step(weight)
scaler.update()
print(len(sys.argv))
dist.destroy_process_group()
