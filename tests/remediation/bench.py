"""One server under test: the real application over ASGI, the real SQLite and journal, a clock that the test moves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from instep_collector.tokens import read_token
from instep_remediation.policy import Policy
from instep_remediation.server.app import make_application
from instep_remediation.server.config import ServerConfig
from instep_remediation.server.runtime import Runtime


@dataclass
class FakeClock:
    """Moves only when it is told to."""

    seconds: float = 10_000.0
    since_1970: float = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.seconds

    def realtime(self) -> float:
        return self.since_1970

    def move(self, seconds: float) -> None:
        self.seconds += seconds
        self.since_1970 += seconds


class Bench:
    """Speaks to one server as agents, supervisors and people do."""

    def __init__(self, runtime: Runtime, client: httpx.AsyncClient, clock: FakeClock) -> None:
        self.runtime, self.client, self.clock = runtime, client, clock

    async def send(self, *frames: bytes) -> None:
        for frame in frames:
            answer = await self.client.post("/ingest/v1/frames", content=frame)
            assert answer.status_code == 200, answer.text

    async def report(self, *reports: dict) -> None:
        for report in reports:
            answer = await self.client.post("/control/v1/reports", json=report)
            assert answer.status_code == 200, answer.text
            assert answer.json() == {"acknowledged": report["id"]}

    async def tick(self, seconds: float = 0.0) -> None:
        self.clock.move(seconds)
        await self.runtime.watch.tick()

    async def orders(self, run: str = "run-1", after: int = 0) -> list[dict]:
        answer = await self.client.get("/control/v1/orders", params={"run": run, "after": after, "wait_seconds": 0})
        assert answer.status_code == 200, answer.text
        return answer.json()["orders"]

    async def incidents(self, *states: str) -> list[dict]:
        query = [("state", state) for state in states or ("suspect", "open", "resolved", "withdrawn")]
        return (await self.client.get("/api/v1/incidents", params=query)).json()["incidents"]

    async def post(self, path: str, **body: object) -> dict:
        answer = await self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def get(self, path: str) -> dict:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def server(folder, clock=None, policy=None, nodes=None, **settings):
    """A server over `folder`, opened and closed; the test ticks."""
    clock = clock or FakeClock()
    runtime = Runtime(ServerConfig(state_dir=folder, **settings), policy or Policy(), clock, nodes=nodes)
    runtime.open()
    token = read_token(runtime.token_file)
    transport = httpx.ASGITransport(app=make_application(runtime, is_watching=False))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://instep", headers={"Authorization": f"Bearer {token}"}
    ) as client:
        try:
            yield Bench(runtime, client, clock)
        finally:
            runtime.close()


def play(story) -> None:
    """Run one test's story in an event loop."""
    asyncio.run(story())
