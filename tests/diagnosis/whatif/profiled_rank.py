"""One rank of a small data-parallel job, recorded twice by torch's profiler: `profiled_rank.py FOLDER RANK STEPS SLOW`.

The slow rank multiplies more matrices in its forward, so that it computes longer for the same gradient.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function, schedule

WORLD_SIZE = 2
WIDTH = 256
EXTRA_PRODUCTS = 450


class Net(torch.nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.extra = extra
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.last = torch.nn.Linear(WIDTH, 8)

    def forward(self, x):
        for _ in range(self.extra):
            torch.mm(x.detach(), x.detach().T)
        return self.last(torch.relu(self.first(x)))


def main(folder, rank, steps, slow):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    torch.set_num_threads(1)
    for kind in ("plain", "named"):
        out = Path(folder) / kind
        out.mkdir(exist_ok=True)
        record(str(out / f"rank{rank}.json.gz"), steps, is_named=kind == "named", is_slow=rank == slow)
    dist.destroy_process_group()


def record(path, steps, *, is_named, is_slow):
    """With named operations gradients are reduced by hand; else the wrapper does it and torch's own names remain."""
    name = record_function if is_named else (lambda _: nullcontext())
    net = Net(EXTRA_PRODUCTS if is_slow else 0)
    net = net if is_named else DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(path),
    ) as profiler:
        for _ in range(steps + 1):
            batch = torch.randn(WIDTH, WIDTH)
            with name("forward-compute"):
                loss = net(batch).sum()
            with name("backward-compute"):
                loss.backward()
            if is_named:
                with name("grads-reduce-scatter"):
                    for parameter in net.parameters():
                        dist.all_reduce(parameter.grad)
            with name("optimizer"):
                optimizer.step()
            optimizer.zero_grad()
            profiler.step()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
