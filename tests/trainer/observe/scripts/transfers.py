"""Run as a rank: sends and receives in two groups that are alike, one transfer in the first and two in the second."""

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
tensor = torch.zeros(4)
for group, count in ((dist.new_group([0, 1]), 1), (dist.new_group([0, 1]), 2)):
    for _ in range(count):
        if dist.get_rank() == 0:
            dist.send(tensor, 1, group=group)
        else:
            dist.recv(tensor, 0, group=group)
dist.destroy_process_group()
