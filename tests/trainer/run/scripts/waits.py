"""A script without torch: says that it is there, and ends as the file `end` in its folder tells it to."""

import os
import subprocess
import sys
import time
from pathlib import Path

WAIT_SECONDS_MAX = 100.0

folder = Path(sys.argv[1])
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
child = subprocess.Popen(["sleep", "100"]) if "with-child" in sys.argv else None
said = folder / f"rank-{attempt}-{rank}"
said.with_suffix(".new").write_text(f"{os.getpid()} {child.pid if child else ''}")
said.with_suffix(".new").rename(said)
until = time.monotonic() + WAIT_SECONDS_MAX
while time.monotonic() < until and not (folder / "end").exists():
    time.sleep(0.02)
how = (folder / "end").read_text()
if how == "raise" and rank == "1":
    raise RuntimeError("the script failed on its own")
sys.exit(int(how) if how.isdigit() and rank == "1" else 0)
