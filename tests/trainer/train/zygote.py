"""Started by the tests: imports torch once and forks ranks, so that a 4-rank attempt costs a second and not ten.

Reads one JSON line per request on standard input: {"ranks": [{"environment", "arguments", "log", "fault"}]} answers
{"pids"}; {"wait": [pids], "seconds"} answers {"codes": {pid: exit code, or null when it lives}}.
"""

import json
import os
import signal
import sys
import time
import traceback


def main() -> None:
    import instep_trainer.train.loop  # noqa: F401
    import torch
    import torch.nn.parallel

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    print(json.dumps({"ready": len(os.listdir("/proc/self/task"))}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"pids": [start(rank) for rank in request["ranks"]]} if "ranks" in request else wait(request)
        print(json.dumps(answer), flush=True)


def start(rank):
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(rank["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1)
    os.dup2(1, 2)
    code = 1
    try:
        code = run(rank)
    except BaseException:  # noqa: BLE001  a forked child must not go on as the zygote
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(rank) -> int:
    from instep_trainer import phases
    from instep_trainer.train import cli, loop, passes

    os.environ.update(rank["environment"])
    fault = rank["fault"] or {}
    passes.DISCARDED_PASSES = fault.get("discarded_passes", passes.DISCARDED_PASSES)
    drill = Drill(fault)
    phases.install(drill)
    plain = loop.train
    loop.train = lambda config, place: plain(config, place, boundary=drill.boundary)
    return cli.main(rank["arguments"])


class Drill:
    """Sends this process a signal at the n-th time it passes a named boundary or fault point."""

    def __init__(self, fault) -> None:
        self.fault = fault
        self.writes = 0
        self.passed = {}

    def boundary(self, name) -> None:
        self.writes += name == "begun"
        if name == self.fault.get("boundary") and self.writes == self.fault["count"]:
            os.kill(os.getpid(), getattr(signal, self.fault["signal"]))

    def fault_point(self, name) -> bool:
        self.passed[name] = self.passed.get(name, 0) + 1
        if name == self.fault.get("point") and self.passed[name] == self.fault["count"]:
            os.kill(os.getpid(), getattr(signal, self.fault["signal"]))
        return False

    def annotate(self) -> None:
        pass

    def enter_phase(self, phase) -> str:
        return ""

    def leave_phase(self, previous) -> None:
        pass

    def finish_step(self, step, tokens, tokens_squared, is_skipped) -> None:
        pass


ENDED = {}


def reap(pids) -> None:
    for pid in pids:
        if pid not in ENDED:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ENDED[pid] = os.waitstatus_to_exitcode(status)


def wait(request):
    end = time.monotonic() + request["seconds"]
    while True:
        reap(request["wait"])
        codes = {pid: ENDED.get(pid) for pid in request["wait"]}
        if None not in codes.values() or time.monotonic() > end:
            return {"codes": codes}
        time.sleep(0.005)


if __name__ == "__main__":
    main()
