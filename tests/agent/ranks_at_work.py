"""Real processes with real rank records: a rank that sleeps in a function with a telling name."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
_RANK = """
import sys, time
sys.path[:0] = sys.argv[1:2]
from instep_agent.rank_record import Op, Phase
from made_records import new_writer
writer = new_writer(sys.argv[2], int(sys.argv[3]), run=sys.argv[4], attempt=int(sys.argv[5]))
writer.heartbeat(7, 0, Phase.forward)
writer.enter(writer.declare_group((0, 1, 2, 3), "dp"), 1, Op.all_reduce, 4096)
def waits_for_its_peers():
    print("ready", flush=True)
    time.sleep(120)
waits_for_its_peers()
"""


class Ranks:
    """Starts ranks and ends them."""

    def __init__(self):
        self._started = []

    def start(self, root, rank=0, *, run="run", attempt=0):
        arguments = [str(HERE / "rank_record"), str(root), str(rank), run, str(attempt)]
        process = subprocess.Popen([sys.executable, "-c", _RANK, *arguments], stdout=subprocess.PIPE)
        self._started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    def end(self, process):
        process.kill()
        process.wait(10)

    def close(self):
        for process in self._started:
            self.end(process)
            process.stdout.close()
