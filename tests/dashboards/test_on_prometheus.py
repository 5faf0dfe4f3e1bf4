"""Every query of every panel has an answer on a real Prometheus that scraped a real cluster in trouble."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from instep_dashboards.generated import BOARDS

from tests import services
from tests.agent.nvml.nvml_library import build
from tests.dashboards.live_cluster import JOB, Watched, watched_cluster
from tests.dashboards.names import filled

pytestmark = pytest.mark.real
EXPRESSIONS = [pair for board in BOARDS for pair in board.expressions()]


def has_pressure() -> bool:
    try:
        return bool(Path("/proc/pressure/cpu").read_text())
    except OSError:
        return False


@pytest.fixture(scope="module")
def nvml(tmp_path_factory) -> Path | None:
    """The folder of the driver's stand-in; None where it cannot be built (in CI that fails)."""
    try:
        return build(tmp_path_factory.mktemp("nvml"))
    except pytest.skip.Exception:
        return None


@pytest.fixture(scope="module")
def story(prometheus: str, nvml: Path | None) -> Iterator[Watched]:
    with watched_cluster(prometheus, nvml) as watched:
        yield watched


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_a_panel_has_data(story, where, expression):
    if "instep_host_pressure_ratio" in expression and not has_pressure():
        pytest.skip("this kernel has no pressure figures (PSI)")
    if "instep_gpu_" in expression and story.scenario is None:
        services.cannot("The NVML stand-in needs gcc and the package nvidia-nvml-dev.")
    assert story.series(filled(expression, JOB)) != []


def test_a_query_without_data_would_be_noticed(story):
    assert story.series('instep_job_step{job="nobody"}') == []
    assert not story.has('instep_job_step{job="nobody"}')


def test_the_variable_lists_the_job(story):
    assert JOB in {labels["job"] for labels in story.series("instep_job_step")}


def test_no_label_was_renamed_by_the_scrape(story):
    assert story.series('{exported_job!=""}') == []


def test_the_servers_page_passes_promtools_check(story, promtool):
    assert _checked(promtool, story.page(story.cluster.url)) == (0, "")


def test_the_agents_pages_pass_promtools_check(story, promtool):
    """How dcgm-exporter spells its names is not ours to mend; promtool has nothing else to say."""
    assert _checked(promtool, story.page(f"http://127.0.0.1:{story.agents['node-a']}")) == (0, "")
    _, said = _checked(promtool, story.page(f"http://127.0.0.1:{story.agents['node-d']}"))
    ours = [line for line in said.splitlines() if not line.startswith("DCGM_FI_")]
    assert ours == []


def _checked(promtool: str, text: str) -> tuple[int, str]:
    run = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    return run.returncode, run.stdout + run.stderr
