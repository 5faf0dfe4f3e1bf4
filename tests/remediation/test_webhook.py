"""One message for each incident, delivered although receiver and server fail in between."""

from instep_remediation.errors import DeliveryError

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob


class Receiver:
    """Takes messages after failing so often."""

    def __init__(self, failures=0):
        self.failures, self.taken, self.tries = failures, [], 0

    def __call__(self, url, key, body):
        self.tries += 1
        if self.tries <= self.failures:
            raise DeliveryError("The receiver answered 503.")
        self.taken.append((url, key, body))


async def crash(bench, job):
    await bench.report(job.opened())
    await bench.send(*job.frames(job.healthy(), bench.clock, {"node-b": (job.xid(drill=True),)}))
    await bench.report(job.exited(2))
    await bench.tick(0.7)


def test_one_incident_is_one_message_that_says_everything(tmp_path):
    async def story():
        async with server(
            tmp_path, webhook="http://receiver/", webhook_on_resolve=True, public_url="http://page"
        ) as bench:
            job, receiver = FakeJob(), Receiver(failures=2)
            bench.runtime.webhooks._send = receiver
            await crash(bench, job)
            for _ in range(5):
                await bench.runtime.webhooks.deliver()
                await bench.tick(5.0)
            ((url, key, body),) = receiver.taken
            assert (url, receiver.tries) == ("http://receiver/", 3)
            assert key == body["id"] == f"{body['incident']}:verdict"
            assert body["where"]["nodes"] == ["node-b"] and body["where"]["ranks"] == [2]
            assert body["is_drill"] and body["what"].startswith("[DRILL] ")
            assert body["how_sure"] > 0.5 and body["evidence"] and body["next"] and body["done"]
            assert body["runbook"].endswith("/crash.md")
            assert body["page"] == f"http://page/incidents/{body['incident']}"
            assert body["since"].endswith("Z")
            await bench.report(*job.restarted())
            await bench.runtime.webhooks.deliver()
            assert len(receiver.taken) == 1, "the GPU is still broken"
            await bench.post("/api/v1/nodes/node-b/repaired", reason="GPU replaced")
            await bench.runtime.webhooks.deliver()
            assert [taken[2]["state"] for taken in receiver.taken] == ["open", "resolved"]

    play(story)


def test_an_undelivered_message_survives_the_server(tmp_path):
    async def story():
        async with server(tmp_path, webhook="http://receiver/") as bench:
            bench.runtime.webhooks._send = Receiver(failures=99)
            await crash(bench, FakeJob())
            assert await bench.runtime.webhooks.deliver() == 0
            clock = bench.clock
        clock.move(10.0)
        async with server(tmp_path, clock, webhook="http://receiver/") as bench:
            bench.runtime.webhooks._send = receiver = Receiver()
            await bench.tick(0.0)
            assert await bench.runtime.webhooks.deliver() == 1
            assert await bench.runtime.webhooks.deliver() == 0
            assert len(receiver.taken) == 1

    play(story)
