"""A hang or a crash leads to one incident, one order, and is over when the job goes on; the healthy twin leads to
nothing.
"""

import pytest
from msgspec.structs import replace

from tests.remediation import fake_job
from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob, node_of


async def begin(bench, job, **healthy):
    await bench.report(job.opened())
    for _ in range(3):
        await bench.send(*job.frames(job.healthy(**healthy), bench.clock))
        await bench.tick(0.25)


async def freeze(bench, job, culprit=2, seconds=4.0):
    """Frames come on, and their ages grow, until the alarm."""
    for tenths in range(0, int(seconds * 10), 5):
        await bench.send(*job.frames(job.stuck(culprit, tenths / 10), bench.clock))
        await bench.tick(0.5)


def test_a_healthy_job_gives_no_incident_and_no_order(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await bench.report(job.opened())
            for _ in range(60):
                job.step += 1
                await bench.send(*job.frames(job.healthy(count=3), bench.clock))
                await bench.tick(0.2)
            await bench.report(job.report("run_finished", {"outcome": "finished", "exit_code": 0}))
            await bench.tick(1.0)
            assert await bench.incidents() == []
            assert await bench.orders() == []

    play(story)


def test_a_frozen_rank_is_named_and_the_job_is_restarted_in_place(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await freeze(bench, job, seconds=2.0)
            (dump,) = await bench.orders()
            assert dump["action"] == "dump"
            await bench.report(
                job.dump(dump["id"], job.stuck(2, 4.5)),
                job.report("order_acknowledged", {"order": dump["id"], "outcome": "done", "detail": ""}),
            )
            await bench.tick(0.1)
            (restart,) = await bench.orders()
            assert (restart["action"], restart["exclude"], restart["attempt"]) == ("restart", [], 0)
            await bench.report(
                job.report("order_acknowledged", {"order": restart["id"], "outcome": "done", "detail": ""})
            )
            await bench.report(job.exited(2))  # Killed because of our own order: no crash.
            await bench.tick(1.0)
            bench.clock.move(0.5)
            await bench.report(*job.restarted(restart["id"]))
            await bench.tick(0.2)
            (incident,) = await bench.incidents()
            assert (incident["kind"], incident["state"], incident["certainty"]) == ("hang", "resolved", "confirmed")
            (suspect,) = incident["suspects"]
            assert (suspect["rank"], suspect["node"], suspect["cause"]) == (2, "node-b", "stopped")
            late = incident["latencies"]
            assert 0.5 <= late["onset_to_alarm_seconds"] <= 4.0
            assert late["alarm_to_verdict_seconds"] <= 2.5
            assert late["verdict_to_step_kept_seconds"] == pytest.approx(1.5, abs=0.3)
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert [action["name"] for action in plan["actions"]] == ["restart", "notify"]
            assert plan["state"] == "done"
            assert await bench.orders() == []

    play(story)


def test_a_hang_gets_its_verdict_without_a_dump_after_two_seconds(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await freeze(bench, job)
            await freeze(bench, job, seconds=3.0)
            assert "restart" in [order["action"] for order in await bench.orders()]

    play(story)


def test_a_killed_rank_with_an_xid_is_one_incident_and_moves_the_ranks(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await bench.send(*job.frames(job.healthy(1), bench.clock, {"node-b": (job.xid(),)}))
            await bench.report(job.exited(2))
            await bench.tick(0.1)  # The node's fact is fatal: nothing to wait for.
            (restart,) = await bench.orders()
            assert (restart["action"], restart["exclude"]) == ("restart", ["node-b"])
            await bench.report(*job.restarted(restart["id"], ("node-a", "node-c")))
            for _ in range(12):
                await bench.tick(1.0)
            (incident,) = await bench.incidents()
            assert (incident["kind"], incident["state"], incident["step_kept"]) == ("crash", "open", 41)
            assert any("stays until node node-b is repaired" in sentence for sentence in incident["done"])
            assert "79" in str(incident["verdict"]["evidence"])
            assert {(s["rank"], s["node"], s["cause"]) for s in incident["suspects"]} == {(2, "node-b", "gpu-fault")}
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert [(a["name"], a["state"]) for a in plan["actions"]] == [
                ("restart", "done"),
                ("drain_node", "proposed"),
                ("notify", "done"),
            ]
            assert plan["state"] == "waiting"
            assert "drain node node-b" in plan["text"]

    play(story)


def test_a_crash_waits_for_facts_and_is_ordered_within_its_grace(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await bench.report(job.exited(1, -9))
            await bench.tick(0.3)
            assert await bench.orders() == []
            await bench.tick(0.35)
            (restart,) = await bench.orders()
            assert (restart["action"], restart["exclude"]) == ("restart", [])
            (incident,) = await bench.incidents("open")
            assert incident["suspects"][0]["rank"] == 1
            assert incident["latencies"]["alarm_to_verdict_seconds"] == pytest.approx(0.65, abs=0.01)

    play(story)


@pytest.mark.parametrize(("rank", "is_told"), [("2", True), ("3", False)], ids=["that rank", "another rank"])
def test_a_rank_that_the_kernel_killed_for_want_of_memory_is_said_to_be_and_its_node_stays(tmp_path, rank, is_told):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            report = job.healthy(1)[0]
            line = replace(
                job.xid(),
                text="Memory cgroup out of memory: Killed process 98765 (python) total-vm:9800000kB",
                fields={"pid": "98765", "run": report.run, "attempt": str(report.attempt), "rank": rank},
            )
            await bench.send(*job.frames(job.healthy(1), bench.clock, {"node-b": (line,)}))
            await bench.report(job.exited(2, -9))
            await bench.tick(0.7)
            (restart,) = await bench.orders()
            assert (restart["action"], restart["exclude"]) == ("restart", [])
            (incident,) = await bench.incidents()
            assert ("the kernel killed rank 2 for want of memory" in incident["summary"]) is is_told
            assert incident["verdict"]["owner"] == ("job" if is_told else "unknown")
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert "drain_node" not in [action["name"] for action in plan["actions"]]

    play(story)


def test_exits_after_the_first_are_consequences(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await bench.report(job.exited(3, 1))
            await bench.tick(0.5)
            await bench.report(job.exited(0, -15), job.exited(1, -9))
            await bench.tick(0.5)
            (incident,) = await bench.incidents()
            assert [suspect["rank"] for suspect in incident["suspects"]] == [3]
            assert len(await bench.orders()) == 1

    play(story)


def test_no_order_without_a_budget_but_the_verdict_and_the_printed_plan(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob(max_restarts=0)
            await begin(bench, job)
            await bench.report(job.exited(1), job.report("run_finished", {"outcome": "failed", "exit_code": 1}))
            await bench.tick(0.7)
            assert await bench.orders() == []
            (incident,) = await bench.incidents()
            assert (incident["kind"], incident["state"]) == ("crash", "resolved")
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert "the run allows 0 restarts (--max-restarts)" in plan["text"]

    play(story)


def test_a_used_up_budget_makes_no_order(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob(max_restarts=1, restarts_used=1)
            await begin(bench, job)
            await bench.report(job.exited(1))
            await bench.tick(0.7)
            assert await bench.orders() == []
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert "1 of 1 restarts are used" in plan["text"]

    play(story)


def test_a_local_decision_is_noted_and_no_order_contradicts_it(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await bench.report(
                job.exited(1),
                job.report(
                    "local_decision", {"action": "restart", "exclude": [], "reason": "rank 1 ended", "verdict": None}
                ),
            )
            await bench.tick(0.7)
            assert await bench.orders() == []
            await bench.report(*job.restarted())
            (incident,) = await bench.incidents()
            assert incident["state"] == "resolved"
            assert any("decided by itself: restart" in sentence for sentence in incident["done"])

    play(story)


def test_reports_that_come_all_at_once_end_in_one_resolved_incident(tmp_path):
    """The server was away: the crash, the local decision and the next attempt arrive in one go."""

    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await bench.report(
                job.exited(1),
                job.report("local_decision", {"action": "restart", "exclude": [], "reason": "", "verdict": None}),
                *job.restarted(),
            )
            await bench.tick(0.7)
            (incident,) = await bench.incidents()
            assert (incident["kind"], incident["state"], incident["step_kept"]) == ("crash", "resolved", 41)
            assert await bench.orders() == []

    play(story)


def test_a_straggler_is_named_and_restarts_nothing_and_ends_when_it_is_over(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            for _ in range(30):
                job.step += 2
                await bench.send(*job.frames(job.healthy(2, slow={3: 1.3}), bench.clock))
                await bench.tick(0.5)
            (incident,) = await bench.incidents("open")
            assert (incident["kind"], incident["suspects"][0]["rank"]) == ("straggler", 3)
            assert incident["suspects"][0]["node"] == node_of(3)
            assert await bench.orders() == []
            for _ in range(90):
                job.step += 2
                await bench.send(*job.frames(job.healthy(2), bench.clock))
                await bench.report(job.report("heartbeat"))
                await bench.tick(0.5)
            (incident,) = await bench.incidents()
            assert incident["state"] == "resolved"

    play(story)


def test_of_two_ranks_one_that_stays_slow_for_the_whole_window_stays_a_straggler(tmp_path, monkeypatch):
    """A pair is judged by a rise over its own past; once the past has left the window, what it does now counts."""
    monkeypatch.setattr(fake_job, "WORLD", 2)
    monkeypatch.setattr(fake_job, "MEMBERS", (0, 1))

    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()

            async def train(seconds, slow):
                for _ in range(2 * seconds):
                    job.step += 5
                    await bench.send(*job.frames(job.healthy(5, slow=slow), bench.clock))
                    await bench.report(job.report("heartbeat"))
                    await bench.tick(0.5)

            await begin(bench, job)
            await train(30, {1: 1.5})
            (incident,) = await bench.incidents("open")
            assert (incident["kind"], incident["suspects"][0]["rank"]) == ("straggler", 1)
            await train(60, {1: 1.5})
            assert [found["id"] for found in await bench.incidents()] == [incident["id"]]
            assert await bench.incidents("open")
            await train(40, {})
            (incident,) = await bench.incidents()
            assert incident["state"] == "resolved"

    play(story)


def test_a_burst_of_slow_steps_is_no_straggler(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            for tick in range(40):
                job.step += 10
                is_burst = tick in (12, 27)
                await bench.send(*job.frames(job.healthy(10, slow={3: 1.5} if is_burst else {}), bench.clock))
                await bench.report(job.report("heartbeat"))
                await bench.tick(0.5)
            assert await bench.incidents() == []

    play(story)


def test_silence_of_an_agent_raises_nothing(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            for _ in range(20):
                await bench.report(job.report("heartbeat"))
                await bench.tick(1.0)
            assert await bench.incidents() == []
            assert await bench.orders() == []

    play(story)


def test_a_suspect_is_shown_and_never_acted_upon_and_withdrawn_when_the_job_goes_on(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            for tenths in range(0, 200, 5):  # Alive, in no known phase: it may save or evaluate unannounced.
                stuck = [
                    report
                    if report.rank != 2
                    else job.rank(
                        2,
                        phase="unknown",
                        process_state="running",
                        is_annotated=False,
                        heartbeat_age_seconds=tenths / 10,
                    )
                    for report in job.stuck(2, tenths / 10)
                ]
                await bench.send(*job.frames(stuck, bench.clock))
                await bench.report(job.report("heartbeat"))
                await bench.tick(0.5)
            (suspect,) = await bench.incidents()
            assert suspect["state"] == "suspect"
            assert await bench.orders() == []
            job.step += 2
            await bench.send(*job.frames(job.healthy(2), bench.clock))
            await bench.tick(0.5)
            assert [row["state"] for row in await bench.incidents()] == ["withdrawn"]
            assert (await bench.get("/api/v1/incidents"))["incidents"] == []

    play(story)


def test_an_xid_on_an_idle_node_is_an_incident_of_its_own(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await bench.send(job.frame("node-c", [], bench.clock, (job.xid(),)))
            await bench.tick(0.1)
            await bench.send(job.frame("node-c", [], bench.clock, (job.xid(id="boot-node-b:epoch-1:2"),)))
            await bench.tick(0.1)
            (incident,) = await bench.incidents()
            assert (incident["kind"], incident["state"]) == ("gpu-fault", "open")
            (plan,) = (await bench.get("/api/v1/plans"))["plans"]
            assert [action["name"] for action in plan["actions"]] == ["drain_node", "notify"]

    play(story)


def test_a_crash_long_after_its_xid_joins_the_older_incident(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await bench.send(*job.frames(job.healthy(1), bench.clock, {"node-b": (job.xid(),)}))
            for _ in range(10):
                job.step += 4
                await bench.send(*job.frames(job.healthy(4), bench.clock))
                await bench.report(job.report("heartbeat"))
                await bench.tick(1.0)
            (fault,) = await bench.incidents("open")
            assert fault["kind"] == "gpu-fault"
            await bench.report(job.exited(2))
            await bench.tick(0.1)
            (incident,) = await bench.incidents("open")
            assert incident["id"] == fault["id"]
            (restart,) = await bench.orders()
            assert restart["exclude"] == ["node-b"]
            await bench.report(*job.restarted(restart["id"], ("node-a", "node-c")))
            (incident,) = await bench.incidents()
            assert (incident["id"], incident["state"], incident["step_kept"]) == (fault["id"], "open", 81)
            await bench.report(job.report("run_finished", {"outcome": "finished", "exit_code": 0}))
            assert len(await bench.incidents("open")) == 1, "the run's end mends no GPU"
            await bench.post("/api/v1/nodes/node-b/repaired", reason="GPU replaced")
            (incident,) = await bench.incidents()
            assert (incident["state"], incident["resolution"][:8]) == ("resolved", "Repaired")

    play(story)


def lost_gpu(job):
    """One GPU that falls off the bus, as the kernel log and the driver's library tell of it."""
    line = job.xid(id="boot-node-b:epoch-1:1")
    where = {"gpu": "0", "uuid": "GPU-node-b-0", "pci": "0000:3b:00"}
    return {
        "the kernel's line": line,
        "the kernel's line without a number": replace(
            line, id="boot-node-b:epoch-1:2", text="NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus."
        ),
        "the driver's event": replace(
            line, id="boot-node-b:epoch-1:3", kind="gpu_event", text="Xid 79 on GPU 0.", fields={**where, "code": "79"}
        ),
        "the lost GPU": replace(
            line, id="boot-node-b:epoch-1:4", kind="gpu_lost", text="GPU 0 does not answer.", fields=where
        ),
    }


@pytest.mark.parametrize("names", [(0,), (1,), (2,), (3,), (0, 1, 2, 3), (3, 2, 1, 0)])
def test_one_lost_gpu_is_one_incident_whoever_tells_of_it(tmp_path, names):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            told = list(lost_gpu(job).values())
            for number in names:
                await bench.send(job.frame("node-b", [], bench.clock, (told[number],)))
                await bench.tick(1.0)
            for _ in range(10):
                await bench.tick(1.0)
            (incident,) = await bench.incidents("open")
            assert (incident["kind"], incident["suspects"][0]["node"]) == ("gpu-fault", "node-b")
            assert incident["suspects"][0]["gpu"] == "GPU-node-b-0"

    play(story)


@pytest.mark.parametrize(
    ("asked", "advice"), [("1", "reset the GPU"), ("2", "reboot it"), ("0", "reboot it")], ids=["1", "2", "nothing"]
)
def test_what_the_driver_asks_for_is_what_people_are_told_to_do(tmp_path, asked, advice):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            told = lost_gpu(job)["the lost GPU"]
            where = told.fields | {"action": asked}
            wish = replace(told, id="boot-node-b:epoch-1:9", kind="gpu_recovery", text="GPU 0 asks.", fields=where)
            await bench.send(job.frame("node-b", [], bench.clock, (job.xid(id="boot-node-b:epoch-1:1"), wish)))
            for _ in range(10):
                await bench.tick(1.0)
            (incident,) = await bench.incidents("open")
            full = await bench.get(f"/api/v1/incidents/{incident['id']}")
            assert advice in full["next"]
            assert ("the driver asks for" in full["summary"]) is (asked != "0")

    play(story)


def test_an_event_of_the_driver_that_says_nothing_bad_is_no_incident(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            harmless = replace(
                lost_gpu(job)["the driver's event"], text="Xid 43 on GPU 0.", fields={"pci": "0000:3b:00", "code": "43"}
            )
            await bench.send(job.frame("node-b", [], bench.clock, (harmless,)))
            for _ in range(12):
                await bench.tick(1.0)
            assert await bench.incidents() == []

    play(story)
