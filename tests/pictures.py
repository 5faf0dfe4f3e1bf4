"""The README's pictures, from a real run: `make screenshots`, or `python -m tests.pictures FOLDER`.

Plays the demo's three faults on a local cluster whose server changes nodes over the stand-in for the Kubernetes API
server, opens the status page in Chromium as an operator, and approves the drain there.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from instep.demo.acts import NODES, PCI, draw_acts
from instep.demo.play import Play, Stage
from instep.local.client import Client
from instep.local.cluster import LocalCluster
from instep_remediation.client import Client as Asking
from matplotlib.image import imread, imsave
from playwright.sync_api import Page, sync_playwright

from tests.cluster.api_server import ApiServer

SEED = 201
LOOK_STEP = 294
"""Late enough for the heat map to be full again after the last restart, and the job still runs."""
WIDTH, HEIGHT = 1080, 1020
SHADES = 17
SIZE_BYTES_MAX = 150_000
REASON = "Xid 79: the GPU is replaced this morning."


def main(words: list[str]) -> int:
    """Write page.png, incident.png and plan.png into the folder."""
    if len(words) != 1:
        print("python -m tests.pictures FOLDER: name the folder for the pictures.", file=sys.stderr)
        return 2
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    with ApiServer(termination_seconds=10.0) as kubernetes, tempfile.TemporaryDirectory() as settings:
        fill(kubernetes)
        config = Path(settings) / "server.toml"
        config.write_text(
            f'executor = "kubernetes"\n[kubernetes]\nkubeconfig = "{kubernetes.kubeconfig(config.parent / "config")}"\n'
        )
        gpus = {node: [PCI[node, minor] for minor in (0, 1)] for node in NODES}
        with LocalCluster(NODES, gpus=gpus, server_options=["--config", str(config)]) as cluster:
            return play(cluster, folder)


def fill(kubernetes: ApiServer) -> None:
    """Nodes with a few pods each."""
    for node in NODES:
        kubernetes.add_node(node)
        kubernetes.add_pod("kube-system", f"agent-{node}", node=node, owner="DaemonSet/agent")
        for number in range(2):
            kubernetes.add_pod("default", f"gpt-{node}-{number}", node=node, owner="StatefulSet/gpt")


def play(cluster: LocalCluster, folder: Path) -> int:
    """Play the faults, and take the pictures while the job runs."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    taken: list[str] = []
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-lcd-text"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        token = cluster.token_file.read_text().strip()
        page.goto(Asking(cluster.url, token).post("/api/v1/page-links", {})["page_link"])

        def look(stage: Stage) -> None:
            if stage.step >= LOOK_STEP and not taken:
                taken.append("now")
                take(page, cluster.client, cluster.url, folder)

        Play(cluster, run="gpt", title="gpt", seed=SEED, data=None, acts=draw_acts(SEED), look=look).run()
        browser.close()
    for path in folder.glob("*.png"):
        thin(path)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.png"))}
    print(", ".join(f"{name} {size / 1000:.0f} kB" for name, size in sizes.items()))
    return 0 if len(sizes) == 3 and max(sizes.values()) <= SIZE_BYTES_MAX else 1


def thin(path: Path) -> None:
    """Write a picture again with fewer shades, which the eye does not miss: a third fewer bytes."""
    shades = np.round(imread(path)[..., :3] * SHADES) / SHADES
    imsave(path, shades, pil_kwargs={"optimize": True})


def take(page: Page, client: Client, url: str, folder: Path) -> None:
    """Take the three pictures; the plan's while it is being carried out."""
    crash = next(one for one in client.incidents("gpt") if one["kind"] == "crash" and one["state"] == "open")
    (plan,) = [one for one in crash["plans"] if drains(one)]
    page.goto(url)
    page.screenshot(path=folder / "page.png")
    page.goto(f"{url}/incidents/{crash['id']}")
    page.screenshot(path=folder / "incident.png")
    page.goto(f"{url}/plans/{plan['id']}")
    page.get_by_label("Reason").fill(REASON)
    page.get_by_role("button", name="Approve").click()
    page.locator(".steps .executing", has_text="Ending").wait_for()
    page.screenshot(path=folder / "plan.png", full_page=True)


def drains(plan: dict[str, Any]) -> bool:
    """Whether a plan would take a node out of service."""
    return any(action["name"] == "drain_node" for action in plan["actions"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
