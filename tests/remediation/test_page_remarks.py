"""The page of a job of two ranks says what they differ by, unless an incident names one of them."""

import pytest

from tests.remediation import fake_job
from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob
from tests.remediation.test_job_stories import begin

NOBODY = "Nobody is named"


@pytest.fixture(autouse=True)
def _two_ranks(monkeypatch):
    monkeypatch.setattr(fake_job, "WORLD", 2)
    monkeypatch.setattr(fake_job, "MEMBERS", (0, 1))


async def train(bench, job, slow):
    for _ in range(30):
        job.step += 5
        await bench.send(*job.frames(job.healthy(5, slow={1: slow}), bench.clock))
        await bench.report(job.report("heartbeat"))
        await bench.tick(0.5)


@pytest.mark.parametrize("slow", [1.0, 1.3])
def test_what_two_ranks_differ_by_from_the_first_step_on_is_on_the_page(tmp_path, slow):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob(step=0)
            await train(bench, job, slow)
            page = (await bench.client.get("/")).text
            assert "2 ranks on" in page and await bench.incidents() == []
            assert (f"Rank 1 works {slow:.2f} times as long as rank 0" in page and NOBODY in page) is (slow > 1.0)

    play(story)


def test_where_an_incident_names_one_of_the_two_the_page_does_not_say_that_nobody_is(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await begin(bench, job)
            await train(bench, job, 1.5)
            (incident,) = await bench.incidents("open")
            assert (incident["kind"], incident["suspects"][0]["rank"]) == ("straggler", 1)
            assert NOBODY not in (await bench.client.get("/")).text

    play(story)
