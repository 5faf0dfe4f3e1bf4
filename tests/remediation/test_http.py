"""Every door is locked, bad input changes nothing, duplicates count once."""

import hashlib

import httpx
import msgspec
import pytest
from instep_agent.wire import Dictionary
from instep_remediation.server.app import make_api

from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob

INGEST = [("POST", "/ingest/v1/frames"), ("POST", "/ingest/v1/dictionary")]
TOKENS = {
    "agent": "agent-token-of-some-length",
    "view": "view-token-of-some-length!",
    "operate": "operate-token-of-length!!",
}


def flat(routes):
    """Every route, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from flat(inner.routes) if inner is not None else [route]


def every_route(runtime):
    routes = [
        (method, route.path.replace("{id}", "1").replace("{run}", "run-1").replace("{node}", "node-a"))
        for route in flat(make_api(runtime).routes)
        for method in route.methods
    ]
    assert len(routes) > 30
    return sorted({*routes, *INGEST, ("GET", "/api/v1/openapi.json"), ("GET", "/docs"), ("PUT", "/nowhere")})


def tokens():
    return [
        {"name": scope, "sha256": hashlib.sha256(token.encode()).hexdigest(), "scopes": [scope]}
        for scope, token in TOKENS.items()
    ]


def bearer(scope):
    return {"Authorization": f"Bearer {TOKENS[scope]}"}


def test_nothing_is_answered_without_a_token_but_health(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            del bench.client.headers["Authorization"]
            for method, path in every_route(bench.runtime):
                for headers in (
                    {},
                    {"Authorization": "Bearer wrong-token-wrong-token"},
                    {"Authorization": "Basic YTpi"},
                    {"Cookie": "instep_session=guess"},
                ):
                    answer = await bench.client.request(method, path, headers=headers)
                    expected = 200 if path in ("/healthz", "/readyz") else 401
                    assert answer.status_code == expected, (method, path, headers)

    play(story)


def test_each_scope_opens_its_own_doors_only(tmp_path):
    async def story():
        async with server(tmp_path, tokens=tokens()) as bench:
            for scope, method, path, status in (
                ("agent", "GET", "/api/v1/incidents", 403),
                ("agent", "GET", "/", 403),
                ("agent", "GET", "/metrics", 403),
                ("view", "POST", "/ingest/v1/frames", 403),
                ("view", "POST", "/control/v1/reports", 403),
                ("view", "GET", "/control/v1/orders?run=r&wait_seconds=0", 403),
                ("view", "GET", "/api/v1/incidents", 200),
                ("view", "GET", "/", 200),
                ("view", "GET", "/metrics", 200),
                ("operate", "GET", "/api/v1/plans", 200),
                ("operate", "POST", "/ingest/v1/frames", 403),
                ("view", "POST", "/api/v1/incidents", 403),
                ("operate", "GET", "/docs", 403),
                ("agent", "GET", "/control/v1/orders?run=r&wait_seconds=0", 200),
            ):
                answer = await bench.client.request(method, path, headers=bearer(scope))
                assert answer.status_code == status, (scope, method, path, answer.text)

    play(story)


def test_a_token_bound_to_a_node_speaks_for_it_only(tmp_path):
    bound = [token | {"node": "node-a"} for token in tokens() if token["name"] == "agent"]

    async def story():
        async with server(tmp_path, tokens=bound) as bench:
            job = FakeJob()
            for node, status in (("node-a", 200), ("node-b", 403)):
                frame = job.frame(node, [], bench.clock)
                answer = await bench.client.post("/ingest/v1/frames", content=frame, headers=bearer("agent"))
                assert answer.status_code == status
                answer = await bench.client.post(
                    "/control/v1/reports", json=job.opened() | {"node": node}, headers=bearer("agent")
                )
                assert answer.status_code == status
            assert sorted(bench.runtime.registry.nodes) == ["node-a"]

    play(story)


def test_metrics_are_open_when_configured(tmp_path):
    async def story():
        async with server(tmp_path, metrics_open=True) as bench:
            job = FakeJob()
            await bench.report(job.opened())
            await bench.send(*job.frames(job.healthy(), bench.clock))
            del bench.client.headers["Authorization"]
            text = (await bench.client.get("/metrics")).text
            assert 'instep_job_step{job="gpt"} 40.0' in text
            assert "instep_ingest_frames_total 3.0" in text
            assert 'instep_incidents_open{kind="hang"} 0.0' in text

    play(story)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/ingest/v1/frames", b"", 400, "not a frame"),
        ("/ingest/v1/frames", b"\xc1" * 100, 400, "not a frame"),
        ("/ingest/v1/frames", b"x" * (4 * 1024 * 1024 + 1), 413, "longer than"),
        ("/ingest/v1/dictionary", b"\x80", 400, "not a dictionary"),
        ("/control/v1/reports", b"{", 400, "not a report"),
        ("/control/v1/reports", b"[" * 100_000, 400, "not a report"),
        (
            "/control/v1/reports",
            b'{"id":1,"job":"j","run":"r","attempt":0,"node":"n","kind":"nonsense","body":{}}',
            400,
            "no report kind",
        ),
        (
            "/control/v1/reports",
            b'{"id":1,"job":"j","run":"r","attempt":-1,"node":"n","kind":"heartbeat","body":{}}',
            400,
            "attempt",
        ),
        (
            "/control/v1/reports",
            b'{"id":1,"job":"","run":"r","attempt":1,"node":"n","kind":"heartbeat","body":{}}',
            400,
            "no usable name",
        ),
        (
            "/control/v1/reports",
            b'{"id":1,"job":"j","run":"r","attempt":1,"node":"n","kind":"rank_exited","body":{}}',
            400,
            "rank_exited",
        ),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(tmp_path, path, body, status, words):
    async def story():
        async with server(tmp_path) as bench:
            answer = await bench.client.post(path, content=body)
            assert answer.status_code == status
            assert words in answer.json()["detail"]
            assert bench.runtime.journal.written_bytes_total == 0
            assert not bench.runtime.registry.runs

    play(story)


def test_a_frame_needs_its_dictionary_and_another_major_version_is_told_so(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            frame = msgspec.msgpack.decode(FakeJob().frame("node-a", [], bench.clock))
            frame |= {"dictionary_hash": "h", "values": b"\0" * 8}
            assert (
                await bench.client.post("/ingest/v1/frames", content=msgspec.msgpack.encode(frame))
            ).status_code == 409
            dictionary = msgspec.msgpack.encode(Dictionary(hash="h", series=(("up", ()),)))
            assert (await bench.client.post("/ingest/v1/dictionary", content=dictionary)).status_code == 204
            answer = await bench.client.post("/ingest/v1/frames", content=msgspec.msgpack.encode(frame))
            assert answer.json() == {"acknowledged": frame["sequence"]}
            assert bench.runtime.window.latest("node-a") == {"up": 0.0}
            newer = msgspec.msgpack.encode(frame | {"version": [2, 0]})
            assert (await bench.client.post("/ingest/v1/frames", content=newer)).status_code == 426
            minor = msgspec.msgpack.encode(frame | {"version": [1, 9], "sequence": 9, "from_the_future": 1})
            assert (await bench.client.post("/ingest/v1/frames", content=minor)).status_code == 200

    play(story)


def test_duplicates_are_acknowledged_again_and_count_once(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            (frame, *_), opened, exited = job.frames(job.healthy(), bench.clock), job.opened(), job.exited(1)
            await bench.send(frame, frame)
            await bench.report(opened, exited, opened, exited)
            await bench.tick(0.7)
            await bench.report(opened, exited)
            await bench.tick(0.7)
            assert (bench.runtime.intake.frames_total, bench.runtime.intake.duplicates_total) == (1, 1)
            assert bench.runtime.intake.reports_total == 2
            assert len(await bench.incidents()) == len(await bench.orders()) == 1

    play(story)


def test_a_second_run_under_a_live_jobs_name_is_refused(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            first, second = FakeJob(run="first"), FakeJob(run="second")
            await bench.report(first.opened())
            answer = await bench.client.post("/control/v1/reports", json=second.opened())
            assert answer.status_code == 409
            assert "held by run 'first'" in answer.json()["detail"]
            assert "second" not in bench.runtime.registry.runs
            bench.clock.move(16.0)  # The first one has fallen silent.
            await bench.report(second.opened())
            await bench.report(second.report("run_finished", {"outcome": "finished", "exit_code": 0}))
            await bench.report(FakeJob(run="third").opened())

    play(story)


def test_names_from_outside_are_escaped_on_the_page(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"

    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob(job=evil)
            await bench.report(job.opened(), job.exited(1))
            await bench.send(*job.frames(job.healthy(), bench.clock))
            await bench.send(job.frame("<b>node</b>", [], bench.clock))
            await bench.tick(0.7)
            (incident,) = await bench.incidents()
            for path in ("/", f"/incidents/{incident['id']}"):
                answer = await bench.client.get(path)
                assert "<script>" not in answer.text
                assert "<img" not in answer.text
                assert "<b>node" not in answer.text
                assert "&lt;script&gt;" in answer.text
                assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "{{7*7}}" in answer.text

    play(story)


def test_the_page_link_works_once_and_its_session_reads_pages_only(tmp_path):
    async def story():
        async with server(tmp_path) as bench:
            link = httpx.URL(bench.runtime.page_link()).query.decode()
            del bench.client.headers["Authorization"]
            answer = await bench.client.get(f"/?{link}")
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            cookie = answer.headers["set-cookie"]
            assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
            assert (await bench.client.get("/")).status_code == 200
            assert (await bench.client.get("/api/v1/incidents")).status_code == 401
            assert (await bench.client.post("/control/v1/reports", json={})).status_code == 401
            bench.client.cookies.clear()
            assert (await bench.client.get(f"/?{link}")).status_code == 401
            bench.clock.move(13 * 3600)
            assert (await bench.client.get("/", headers={"Cookie": cookie.partition(";")[0]})).status_code == 401

    play(story)


def test_a_waiting_coordinator_is_woken_by_its_order(tmp_path):
    import asyncio

    async def story():
        async with server(tmp_path) as bench:
            job = FakeJob()
            await bench.report(job.opened())
            waiting = asyncio.create_task(
                bench.client.get("/control/v1/orders", params={"run": "run-1", "wait_seconds": 60})
            )
            while not bench.runtime.hub.waiting("run-1"):
                await asyncio.sleep(0)
            await bench.report(job.exited(1))
            await bench.tick(0.7)
            (order,) = (await waiting).json()["orders"]
            assert order["action"] == "restart"
            assert await bench.orders(after=order["id"]) == []
            assert await bench.orders("another-run") == []
            bench.clock.move(31.0)
            assert await bench.orders() == []  # Carried out late, it would surprise.

    play(story)
