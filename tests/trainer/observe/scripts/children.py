"""Run as a rank: starts children in every way a loader does; none of them may write the rank's record."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def child(queue: "multiprocessing.Queue[bool]") -> None:
    from instep_trainer.observe import start

    queue.put(start.claim_record() is None)


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


if __name__ == "__main__":
    dist.init_process_group("gloo")
    answers = []
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        answers.append(queue.get(timeout=60))
        process.join()
    batches = sum(len(batch) for batch in torch.utils.data.DataLoader(Numbers(), num_workers=2, batch_size=2))
    dist.all_reduce(torch.ones(1))
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(
        json.dumps({"silent": answers, "batches": batches, "marker": os.environ.get("FROM_SITE", "")})
    )
    dist.destroy_process_group()
