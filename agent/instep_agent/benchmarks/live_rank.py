"""One rank that works: a step each second with its phases and eight collectives, in a real rank record."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from instep_agent.rank_record.identity import RankIdentity
from instep_agent.rank_record.layout import CompletedSource, Op, Phase
from instep_agent.rank_record.writer import RankRecordWriter

STEP_SECONDS = 1.0
COLLECTIVES = 8
_PHASES = (Phase.data, Phase.forward, Phase.backward, Phase.wait, Phase.optimizer)


def main(arguments: list[str]) -> int:
    """Work as rank RANK of WORLD with a record beneath ROOT, for NODE, until killed."""
    root, node, rank, world = Path(arguments[0]), arguments[1], int(arguments[2]), int(arguments[3])
    identity = RankIdentity(
        job="bench", run="bench", attempt=0, rank=rank, local_rank=rank, world_size=world, node=node
    )
    writer = RankRecordWriter.create(root, identity)
    group = writer.declare_group(range(world), "dp", 0)
    step = 0
    while True:
        for phase in _PHASES:
            writer.heartbeat(step, 0, int(phase))
            time.sleep(STEP_SECONDS / len(_PHASES))
        for seq in range(step * COLLECTIVES + 1, (step + 1) * COLLECTIVES + 1):
            token = writer.enter(group, seq, int(Op.all_reduce), 4096)
            writer.returned(token)
            writer.completed(token, int(CompletedSource.polled))
        writer.finish_step(step, STEP_SECONDS, forward_seconds=0.3, backward_seconds=0.5, wait_seconds=0.1)
        step += 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
