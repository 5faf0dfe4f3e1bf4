"""The audit log is kept for as long as it is asked to be, and says itself what was removed from it."""

import asyncio

from instep_collector.store import audit

from tests.remediation.bench import play, server

DAY = 86_400.0


async def filled(bench, *ages):
    with bench.runtime.store.begin() as session:
        for age in ages:
            at = bench.clock.realtime() - age * DAY
            audit.note(session, at=at, actor="ada", action="approve", subject="plan 1", reason=f"{age:g} days ago")


async def lines(bench):
    return [(row["action"], row["reason"]) for row in (await bench.get("/api/v1/audit"))["audit"]]


def test_lines_beyond_their_retention_are_removed_and_that_is_a_line(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            await filled(bench, 1.0, 399.0, 400.5, 402.0)
            await bench.runtime.prune_audit()
            told, *kept = await lines(bench)
            assert told[0] == "audit-prune" and told[1].startswith("2 lines from before 20")
            assert [reason for _, reason in kept] == ["399 days ago", "1 days ago"]
            await bench.runtime.prune_audit()
            assert len(await lines(bench)) == 3, "once: nothing is old any more"

    play(story)


def test_nothing_old_leaves_the_audit_log_as_it_is(tmp_path):
    async def story():
        async with server(tmp_path, audit_retention_days=30.0) as bench:
            await bench.runtime.prune_audit()
            await filled(bench, 1.0, 30.5)
            await bench.runtime.prune_audit()
            assert len(await lines(bench)) == 2, "it waits until a whole day's lines are old"

    play(story)


def test_a_started_server_prunes_by_itself(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            bench.runtime.start()
            jobs = {job.func.__name__ for job in bench.runtime._scheduler.get_jobs()}
            bench.runtime._scheduler.shutdown(wait=False)
            for task in bench.runtime._tasks:
                task.cancel()
            await asyncio.gather(*bench.runtime._tasks, return_exceptions=True)
            assert {"prune", "prune_audit"} <= jobs

    play(story)
