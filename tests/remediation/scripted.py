"""A node executor that follows a script and remembers what it changed; and a server that runs with it, as a process.

As a process it writes what it did to files in the folder INSTEP_SCRIPTED, and dies by `kill -9` at each point that
stands in the file `deaths` there, one point a server: `steps`, `NAME:before` (asked, nothing changed yet) and
`NAME:after` (changed, not yet told).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from instep_remediation.actions import CordonNode, DrainNode, UncordonNode
from instep_remediation.node_executor import Outcome, Progress, Step

STEPS = {CordonNode: ("cordon",), DrainNode: ("cordon", "evict"), UncordonNode: ("uncordon",)}
WAITING = Progress(Outcome.WAITING, "2 pods are still ending.", 5.0)
FAILED = Progress(Outcome.FAILED, "The node is gone.")


class ScriptedExecutor:
    """Answers with what the script says, then with done. A step that changed something once changes nothing again."""

    name = "scripted"
    is_changing = True

    def __init__(self, **script: list[Progress]) -> None:
        self.script = script
        self.asked: list[str] = []
        self.changed: dict[str, int] = {}
        self.on_ask = lambda step: None

    def steps(self, action, mark):
        node = action.arguments()["node"]
        return [Step(name, node, f"{mark}-{name}", {"for": action.name}) for name in STEPS[type(action)]]

    def carry_out(self, step):
        self.asked.append(f"{step.name} {step.node}")
        self.on_ask(step)
        answers = self.script.get(step.name)
        if answers:
            return answers.pop(0)
        self.changed.setdefault(step.mark, len(self.asked))
        return Progress(Outcome.DONE, f"{step.name} is done.")


class DyingExecutor(ScriptedExecutor):
    """Keeps its account in files, and kills its own process where it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def die_at(self, point: str) -> None:
        deaths = (self.folder / "deaths").read_text().split()
        if point in deaths[:1]:
            (self.folder / "deaths").write_text("\n".join(deaths[1:]))
            os.kill(os.getpid(), signal.SIGKILL)

    def steps(self, action, mark):
        self.die_at("steps")
        return super().steps(action, mark)

    def carry_out(self, step):
        self.die_at(f"{step.name}:before")
        with (self.folder / "asked").open("a") as file:
            file.write(f"{step.mark}\n")
        with (self.folder / step.mark).open("a") as file:
            file.write("changed\n" if file.tell() == 0 else "")
        self.die_at(f"{step.name}:after")
        return Progress(Outcome.DONE, f"{step.name} is done.")


def make(_config):
    return DyingExecutor(Path(os.environ["INSTEP_SCRIPTED"]))


if __name__ == "__main__":
    from instep_remediation.executors import EXECUTORS
    from instep_remediation.server.cli import main

    EXECUTORS["scripted"] = "tests.remediation.scripted:make"
    sys.exit(main())
