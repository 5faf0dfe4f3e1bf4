"""Many faults at once: few incidents are opened in one look, and the server says that the others follow."""

import pytest
from instep_remediation import node_faults
from prometheus_client.parser import text_string_to_metric_families

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.test_late_faults import XID_95, of_boot, settle


async def gauges(bench):
    families = text_string_to_metric_families((await bench.client.get("/metrics")).text)
    wanted = ("instep_faults_waiting", "instep_faults_dropped_total")
    return {one.name: one.value for family in families for one in family.samples if one.name in wanted}


async def strike(bench, count):
    """The same fault on so many nodes at once."""
    job = FakeJob()
    for number in range(count):
        event = job.xid(text=XID_95, id=f"boot:epoch-1:{number}")
        await bench.send(of_boot(job.frame(f"node-{number}", [], bench.clock, (event,)), f"boot-{number}", 120.0))


@pytest.mark.parametrize(("count", "is_storm"), [(3, False), (40, True)])
def test_a_storm_of_faults_is_told_once_and_opens_them_all(tmp_path, caplog, count, is_storm):
    async def story():
        async with server(tmp_path) as bench:
            await strike(bench, count)
            most = 0.0
            for _ in range(30):
                await settle(bench, 1)
                most = max(most, (await gauges(bench))["instep_faults_waiting"])
            assert (most > 0.0) is is_storm
            assert await gauges(bench) == {"instep_faults_waiting": 0.0, "instep_faults_dropped_total": 0.0}
            assert len(await bench.incidents("open")) == count
        told = [record for record in caplog.records if "are opened in one look" in record.getMessage()]
        assert len(told) == is_storm

    play(story)


def test_faults_that_find_no_room_are_counted_and_told_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(node_faults, "WAITING_MAX", 10)
    monkeypatch.setattr(node_faults, "OPENED_PER_TICK_MAX", 1)

    async def story():
        async with server(tmp_path) as bench:
            await strike(bench, 30)
            await settle(bench, 20)
            dropped = (await gauges(bench))["instep_faults_dropped_total"]
            assert dropped > 0.0
            assert len(await bench.incidents("open")) == 30 - dropped
        assert len([record for record in caplog.records if "the oldest open nothing" in record.getMessage()]) == 1

    play(story)
