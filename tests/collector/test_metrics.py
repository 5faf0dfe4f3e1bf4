"""What Prometheus reads from the server: values over ranks, silent nodes, incidents and orders, with bounded labels."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.rank_record.layout import Phase
from instep_collector.errors import StoreAway
from instep_collector.job_metrics import over_ranks
from instep_collector.metrics import JOBS_MAX, NODE_GONE_SECONDS, NODE_SILENT_SECONDS, NODES_NAMED_MAX, metric_names
from prometheus_client.parser import text_string_to_metric_families

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob


async def page(bench) -> dict[str, dict[tuple[str, ...], float]]:
    """The exposition as name → label values (by label name) → value."""
    text = (await bench.client.get("/metrics")).text
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


async def running(bench, job, **healthy):
    await bench.report(job.opened())
    await bench.send(*job.frames(job.healthy(**healthy), bench.clock))


def test_the_slowest_rank_of_a_job_is_named_with_its_ratio(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            await running(bench, FakeJob(), slow={2: 1.5})
            found = await page(bench)
            assert found["instep_job_slowest_rank"]["gpt",] == 2
            assert found["instep_job_slowest_rank_ratio"]["gpt",] == pytest.approx(1.5, abs=0.05)
            assert found["instep_job_rank_work_seconds"]["gpt", "max"] == pytest.approx(0.15, abs=0.01)
            assert found["instep_job_rank_work_seconds"]["gpt", "median"] == pytest.approx(0.1, abs=0.01)
            waits = found["instep_job_rank_wait_ratio"]
            assert waits["gpt", "max"] == pytest.approx(0.15 / 0.25, abs=0.02), "the others wait for it"

    play(story)


def test_no_rank_of_an_even_job_stands_out(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            await running(bench, FakeJob())
            found = await page(bench)
            assert found["instep_job_slowest_rank_ratio"]["gpt",] == pytest.approx(1.0, abs=0.01)
            assert found["instep_job_ranks_alive"]["gpt",] == found["instep_job_ranks_expected"]["gpt",] == 4
            assert found["instep_job_restarts_max"]["gpt",] == 3
            parts = {labels[1]: seconds for labels, seconds in found["instep_job_step_part_seconds"].items()}
            assert sum(parts.values()) == pytest.approx(found["instep_job_step_seconds"]["gpt",], rel=0.02)

    play(story)


def test_ranks_that_are_gone_or_unheard_of_are_not_alive(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await running(bench, job)
            await bench.send(*job.frames([job.rank(0), job.rank(1, process_state="gone")], bench.clock))
            assert (await page(bench))["instep_job_ranks_alive"]["gpt",] == 3
            bench.clock.move(11.0)
            found = await page(bench)
            assert found["instep_job_ranks_alive"]["gpt",] == 0
            assert found["instep_job_heartbeat_age_seconds_max"]["gpt",] == pytest.approx(11.05, abs=0.5)

    play(story)


def test_a_phase_that_nobody_knows_makes_no_label(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await bench.send(*job.frames([job.rank(0, phase="made up"), job.rank(1)], bench.clock))
            phases = {labels[1]: ranks for labels, ranks in (await page(bench))["instep_job_phase_ranks"].items()}
            assert set(phases) == {phase.name for phase in Phase}
            assert (phases["unknown"], phases["forward"]) == (1, 1)

    play(story)


def test_a_silent_node_is_named_until_it_is_taken_to_be_removed(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await running(bench, job)
            found = await page(bench)
            assert (found["instep_nodes_reporting"][()], found["instep_nodes_silent"][()]) == (3, 0)
            bench.clock.move(NODE_SILENT_SECONDS + 1)
            await bench.send(job.frame("node-a", [], bench.clock))
            found = await page(bench)
            assert (found["instep_nodes_reporting"][()], found["instep_nodes_silent"][()]) == (1, 2)
            assert set(found["instep_node_silent_seconds"]) == {("node-b",), ("node-c",)}
            bench.clock.move(NODE_GONE_SECONDS)
            found = await page(bench)
            assert found["instep_nodes_silent"][()] == 1, "node-a alone is silent for less than a day"

    play(story)


def test_labels_stay_bounded_whatever_is_sent(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            for number in range(JOBS_MAX + 5):
                job = FakeJob(job=f"job-{number}", run=f"run-{number}")
                await bench.send(job.frame(f"node-{number}", [job.rank(0, node=f"node-{number}")], bench.clock))
            found = await page(bench)
            assert len(found["instep_job_step"]) == JOBS_MAX
            assert found["instep_jobs_live"][()] == JOBS_MAX + 5
            bench.clock.move(NODE_SILENT_SECONDS + 1)
            found = await page(bench)
            assert len(found["instep_node_silent_seconds"]) == NODES_NAMED_MAX
            assert found["instep_nodes_silent"][()] == JOBS_MAX + 5

    play(story)


def test_incidents_plans_and_orders_are_counted_as_the_store_holds_them(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await running(bench, job)
            found = await page(bench)
            assert found.get("instep_job_incidents_open", {}) == {}
            assert found["instep_orders_kept"]["restart", "pending"] == 0
            await bench.send(*job.frames(job.healthy(), bench.clock, {"node-b": (job.xid(drill=True),)}))
            await bench.report(job.exited(2))
            await bench.tick(1.0)
            found = await page(bench)
            assert found["instep_job_incidents_open"] == {("true", "gpt", "crash"): 1}
            assert found["instep_orders_kept"]["restart", "pending"] == 1
            assert sum(found["instep_plans"].values()) == 1
            (order,) = await bench.orders()
            await bench.report(*job.restarted(order["id"], nodes=("node-a", "node-c")))
            found = await page(bench)
            assert found["instep_orders_kept"]["restart", "done"] == 1
            assert found["instep_job_restarts"]["gpt",] == 1
            assert found["instep_job_kept_step_first"]["gpt",] == job.step + 1
            assert found["instep_job_resume_seconds"]["gpt",] == 0.0, "the clock stood still"

    play(story)


def test_an_incident_of_a_node_alone_has_no_empty_label(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await bench.send(job.frame("node-c", [], bench.clock, (job.xid(),)))
            for _ in range(12):
                await bench.send(job.frame("node-c", [], bench.clock))
                await bench.tick(1.0)
            assert (await page(bench))["instep_job_incidents_open"] == {("false", "(none)", "gpu-fault"): 1}

    play(story)


def test_a_store_that_does_not_answer_leaves_the_rest_of_the_page(tmp_path, monkeypatch):
    async def story():
        async with server(tmp_path) as bench:
            await running(bench, FakeJob())

            def fail():
                raise StoreAway("disk I/O error")

            monkeypatch.setattr(bench.runtime.store, "begin", fail)
            found = await page(bench)
            monkeypatch.undo()
            assert "instep_plans" not in found
            assert found["instep_job_step"]["gpt",] == 40

    play(story)


def test_every_name_on_the_page_is_declared(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            await running(bench, FakeJob())
            bench.clock.move(NODE_SILENT_SECONDS - 20)
            found = {name for name in await page(bench) if not name.endswith("_created")}
            assert found <= metric_names()

    play(story)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)")
def test_the_page_passes_promtools_check(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await running(bench, job)
            await bench.report(job.exited(2))
            await bench.tick(1.0)
            text = (await bench.client.get("/metrics")).text
            run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
            assert (run.returncode, run.stdout + run.stderr) == (0, "")

    play(story)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200))
def test_the_worst_is_no_better_than_most_and_most_no_better_than_half(values):
    found = {labels[0]: value for labels, value in over_ranks(values)}
    assert found["median"] <= found["p90"] <= found["max"]
    assert found["max"] == max(values)
    assert sum(value <= found["p90"] for value in values) >= 0.9 * len(values)
