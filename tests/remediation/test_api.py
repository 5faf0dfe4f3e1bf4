"""People decide over the API: every change has a reason, a scope and an audit line, and is made once."""

import httpx
import pytest
from instep_collector.store import plans
from instep_remediation.decisions import Decisions
from instep_remediation.policy import NodePolicy, Policy
from instep_remediation.server import contract, job_contract
from instep_remediation.server.app import make_application
from instep_remediation.server.problems import TITLES

from tests.remediation.bench import play, server
from tests.remediation.scripted import FAILED, ScriptedExecutor
from tests.remediation.test_http import bearer, tokens
from tests.remediation.test_plan_life import broken_node, carry_out, known, said, states

REASON = {"reason": "The GPU fell off the bus."}


async def ask(bench, method, path, scope="operate", json=None, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await bench.client.request(method, path, json=json, headers=bearer(scope) | names)


def is_problem(answer, name):
    status, title = TITLES[name]
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, body["status"], body["title"]) == (status, status, title), body
    assert body["type"] == f"urn:instep:problem:{name}"
    return body


def test_a_plan_is_approved_with_a_reason_by_whoever_may_operate(tmp_path):
    async def story():
        async with broken_node(tmp_path, ScriptedExecutor(), tokens=tokens()) as bench:
            assert (
                "operate"
                in is_problem(await ask(bench, "POST", "/api/v1/plans/1/approve", "view", REASON), "forbidden")[
                    "detail"
                ]
            )
            is_problem(await ask(bench, "POST", "/api/v1/plans/1/approve", "agent", REASON), "forbidden")
            assert states(bench)[0] == "waiting"
            answer = await ask(bench, "POST", "/api/v1/plans/1/approve", json=REASON)
            plan = answer.json()
            assert (answer.status_code, plan["state"], plan["decided_by"], plan["decision"]) == (
                200,
                "approved",
                "operate",
                REASON["reason"],
            )
            await carry_out(bench)
            plan = (await ask(bench, "GET", "/api/v1/plans/1", "view")).json()
            assert [(step["name"], step["state"]) for step in plan["actions"][1]["steps"]] == [
                ("cordon", "done"),
                ("evict", "done"),
            ]
            (line,) = (await ask(bench, "GET", "/api/v1/audit?actor=operate", "view")).json()["audit"]
            assert (line["action"], line["subject"], line["reason"]) == ("approve", "plan 1", REASON["reason"])

    play(story)


@pytest.mark.parametrize(("verb", "state"), [("reject", "rejected"), ("cancel", "cancelled"), ("execute", "approved")])
def test_other_decisions_end_in_their_states(tmp_path, verb, state):
    async def story():
        async with broken_node(tmp_path, ScriptedExecutor(), tokens=tokens()) as bench:
            answer = await ask(bench, "POST", f"/api/v1/plans/1/{verb}", json=REASON)
            assert (answer.status_code, answer.json()["state"]) == (200, state)
            assert ("operate", verb, "plan 1") in said(bench)

    play(story)


@pytest.mark.parametrize(
    ("body", "name", "pointer"),
    [
        ({}, "invalid", "#/reason"),
        ({"reason": ""}, "invalid", "#/reason"),
        ({"reason": "x" * 1001}, "invalid", "#/reason"),
        ({"reason": "nul \0"}, "invalid", "#/reason"),
        ({"reason": "x", "force": True}, "invalid", "#/force"),
        (b"{", "malformed", "#"),
        (b"[" * 60_000, "malformed", None),
        (b"x" * 70_000, "too-large", None),
    ],
)
def test_a_change_without_a_usable_reason_is_a_problem_with_its_place(tmp_path, body, name, pointer):
    async def story():
        async with broken_node(tmp_path, ScriptedExecutor(), tokens=tokens()) as bench:
            raw = {"content": body, "headers": {"Content-Type": "application/json"}}
            given = raw if isinstance(body, bytes) else {"json": body}
            found = is_problem(await bench.client.post("/api/v1/plans/1/approve", **given), name)
            if pointer is not None:
                assert found["errors"][0]["pointer"] == pointer
            assert states(bench)[0] == "waiting"

    play(story)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/api/v1/plans/99", "not-found"),
        ("GET", "/api/v1/incidents/inc-0", "not-found"),
        ("GET", "/api/v1/nodes/nowhere", "not-found"),
        ("GET", "/api/v1/nothing", "not-found"),
        ("PUT", "/api/v1/plans/1", "method-not-allowed"),
        ("GET", "/api/v1/plans?limit=0", "invalid"),
        ("GET", "/api/v1/plans?state=sleeping", "invalid"),
        ("GET", "/api/v1/plans/x", "invalid"),
    ],
)
def test_every_error_is_a_problem(tmp_path, method, path, name):
    async def story():
        async with server(tmp_path) as bench:
            answer = await bench.client.request(method, path)
            assert is_problem(answer, name)["instance"] == path.partition("?")[0]
            if name == "method-not-allowed":
                assert answer.headers["allow"] == "GET"
            del bench.client.headers["Authorization"]
            refused = await bench.client.request(method, path)
            is_problem(refused, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"

    play(story)


def test_a_failure_of_ours_is_a_problem_that_tells_no_secret(tmp_path, caplog):
    async def story():
        async with server(tmp_path) as bench:
            app = make_application(bench.runtime, is_watching=False)
            bench.runtime.registry.runs = None
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            headers = bench.client.headers
            async with httpx.AsyncClient(transport=transport, base_url="http://instep", headers=headers) as client:
                found = is_problem(await client.get("/api/v1/jobs"), "internal")
                assert "NoneType" not in found["detail"]

    play(story)
    assert "GET /api/v1/jobs failed." in caplog.text


def test_who_decides_on_an_older_version_is_told_so(tmp_path):
    async def story():
        async with broken_node(tmp_path, ScriptedExecutor(), tokens=tokens()) as bench:
            seen = (await ask(bench, "GET", "/api/v1/plans/1")).headers["etag"]
            first = await ask(bench, "POST", "/api/v1/plans/1/approve", json=REASON, If_Match=seen)
            assert first.status_code == 200 and first.headers["etag"] != seen
            late = await ask(bench, "POST", "/api/v1/plans/1/cancel", json=REASON, If_Match=seen)
            assert "has changed" in is_problem(late, "outdated")["detail"]
            is_problem(await ask(bench, "POST", "/api/v1/plans/1/cancel", json=REASON, If_Match='W/"1"'), "outdated")
            assert states(bench)[0] == "approved"
            anyway = await ask(bench, "POST", "/api/v1/plans/1/cancel", json=REASON, If_Match="*")
            assert anyway.json()["state"] == "cancelled"

    play(story)


def test_a_change_that_is_asked_for_again_is_made_once(tmp_path):
    async def story():
        nodes, again = ScriptedExecutor(), {"Idempotency_Key": "key-1"}
        async with server(tmp_path, nodes=nodes, tokens=tokens()) as bench:
            clock = bench.clock
            await known(bench, "node-a", "node-b")
            first = await ask(bench, "POST", "/api/v1/nodes/node-b/cordon", json=REASON, **again)
            await carry_out(bench)
            second = await ask(bench, "POST", "/api/v1/nodes/node-b/cordon", json=REASON, **again)
            assert (second.status_code, second.json(), second.headers["etag"]) == (
                200,
                first.json(),
                first.headers["etag"],
            )
            for path, body in (("node-b/cordon", {"reason": "other"}), ("node-a/cordon", REASON)):
                other = await ask(bench, "POST", f"/api/v1/nodes/{path}", json=body, **again)
                is_problem(other, "key-reused")
        async with server(tmp_path, clock, nodes=nodes, tokens=tokens()) as bench:
            third = await ask(bench, "POST", "/api/v1/nodes/node-b/cordon", json=REASON, **again)
            assert third.json() == first.json()  # It outlives the server.
            assert len((await bench.get("/api/v1/plans"))["plans"]) == 1
            mine = await ask(bench, "POST", "/api/v1/nodes/node-b/cordon", "operate", json=REASON)
            assert mine.json()["id"] == 2
            clock.move(86_401.0)
            await bench.runtime.prune()
            late = await ask(bench, "POST", "/api/v1/nodes/node-b/cordon", json=REASON, **again)
            assert late.json()["id"] == 3

    play(story)


def test_a_key_belongs_to_its_token_and_a_refusal_is_not_kept(tmp_path):
    async def story():
        async with broken_node(tmp_path, ScriptedExecutor(), tokens=tokens()) as bench:
            key = {"Idempotency_Key": "k"}
            is_problem(await ask(bench, "POST", "/api/v1/plans/9/approve", json=REASON, **key), "not-found")
            first = await ask(bench, "POST", "/api/v1/plans/1/approve", json=REASON, **key)
            assert first.status_code == 200
            other = await bench.client.post("/api/v1/plans/1/cancel", json=REASON, headers={"Idempotency-Key": "k"})
            assert other.json()["state"] == "cancelled"

    play(story)


def test_two_servers_that_decide_at_the_same_moment_do_not_overwrite_each_other(tmp_path):
    """The other one commits between this one's look and its change, as a second server on the same database may."""

    async def story():
        async with broken_node(tmp_path, ScriptedExecutor(), tokens=tokens()) as bench:
            decide_here = bench.runtime.decisions.approve

            def interrupted(session, plan_id, actor, reason, **options):
                seen = plans.get(session, plan_id)
                with bench.runtime.store.begin() as other:
                    plans.get(other, plan_id).decision = "The other server's."
                assert seen.decision == ""
                return decide_here(session, plan_id, actor, reason, **options)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Decisions, "approve", staticmethod(interrupted))
                app = make_application(bench.runtime, is_watching=False)
                async with httpx.AsyncClient(
                    transport=httpx.ASGITransport(app=app), base_url="http://instep", headers=bench.client.headers
                ) as client:
                    is_problem(await client.post("/api/v1/plans/1/approve", json=REASON), "outdated")
            assert states(bench)[:2] == ("waiting", ["done", "proposed", "done"])

    play(story)


def test_an_incident_is_acknowledged(tmp_path):
    async def story():
        async with broken_node(tmp_path, None, tokens=tokens()) as bench:
            (incident,) = await bench.incidents()
            path = f"/api/v1/incidents/{incident['id']}"
            assert incident["acknowledged_at"] is None
            answer = await ask(bench, "POST", f"{path}/acknowledge", json={"reason": "I look at it."})
            assert (answer.json()["acknowledged_by"], answer.json()["acknowledgement"]) == ("operate", "I look at it.")
            now = await ask(bench, "GET", path)
            assert now.headers["etag"] == answer.headers["etag"] == f'"{now.json()["version"]}"'
            assert ("operate", "acknowledge", f"incident {incident['id']}") in said(bench)

    play(story)


def test_a_node_is_changed_by_hand_and_shown(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with server(tmp_path, nodes=nodes, tokens=tokens()) as bench:
            await known(bench, "node-b")
            before = said(bench)
            would = (await ask(bench, "POST", "/api/v1/nodes/node-b/drain", json=REASON | {"dry_run": True})).json()
            assert ([step["text"] for step in would["steps"]], would["is_changing"]) == (
                ["cordon node-b (for drain_node)", "evict node-b (for drain_node)"],
                True,
            )
            assert (said(bench), (await bench.get("/api/v1/plans"))["plans"]) == (before, [])
            made = (await ask(bench, "POST", "/api/v1/nodes/node-b/drain", json=REASON)).json()
            assert (made["state"], made["incident"]) == ("approved", None)
            assert ("operate", "drain", "node node-b") in said(bench)
            shown = (await ask(bench, "GET", "/api/v1/nodes/node-b", "view")).json()
            assert ([plan["id"] for plan in shown["plans"]], shown["cordoned"]) == ([1], None)
            await carry_out(bench)
            (listed,) = (await bench.get("/api/v1/nodes"))["nodes"]
            assert (listed["cordoned"]["actor"], listed["cordoned"]["plan"]) == ("operate", 1)
            back = (await ask(bench, "POST", "/api/v1/nodes/node-b/repaired", json=REASON)).json()
            await carry_out(bench)
            assert (back["plan"]["id"], back["resolved"]) == (2, [])
            assert (await bench.get("/api/v1/nodes/node-b"))["cordoned"] is None

    play(story)


def test_the_executor_that_prints_refuses_changes_and_still_takes_a_repair(tmp_path):
    async def story():
        async with server(tmp_path, tokens=tokens()) as bench:
            await known(bench, "node-b")
            refused = await ask(bench, "POST", "/api/v1/nodes/node-b/drain", json=REASON)
            assert 'executor "print" changes nothing' in is_problem(refused, "not-possible")["detail"]
            back = await ask(bench, "POST", "/api/v1/nodes/node-b/repaired", json=REASON)
            assert back.json() == {"plan": None, "resolved": [], "remembered": []}

    play(story)


def test_the_breaker_is_reset_by_an_administrator_only(tmp_path):
    async def story():
        policy = Policy(nodes=NodePolicy(drain="auto"), guards={"failures_max": 1})
        nodes = ScriptedExecutor(cordon=[FAILED])
        async with server(tmp_path, policy=policy, nodes=nodes, tokens=tokens()) as bench:
            await known(bench, "node-b")
            await ask(bench, "POST", "/api/v1/nodes/node-b/cordon", json=REASON)
            await carry_out(bench)
            state = (await ask(bench, "GET", "/api/v1/breaker", "view")).json()
            assert (state["is_open"], state["failures"], state["failures_max"]) == (True, 1, 1)
            is_problem(await ask(bench, "POST", "/api/v1/breaker/reset", json=REASON), "forbidden")
            answer = await bench.client.post("/api/v1/breaker/reset", json=REASON)
            assert (answer.json()["is_open"], answer.json()["reset_by"]) == (False, "admin")
            effective = (await ask(bench, "GET", "/api/v1/policy", "view")).json()
            assert effective["policy"]["nodes"]["drain"] == "auto"
            assert effective["executor"] == {"name": "scripted", "is_changing": True}

    play(story)


CONTRACT = {
    "/api/v1/jobs": job_contract.Jobs,
    "/api/v1/jobs/run-1": job_contract.JobDetail,
    "/api/v1/jobs/run-1/steps": job_contract.Steps,
    "/api/v1/nodes": contract.Nodes,
    "/api/v1/nodes/node-b": contract.NodeDetail,
    "/api/v1/incidents": contract.Incidents,
    "/api/v1/plans": contract.Plans,
    "/api/v1/plans/1": contract.Plan,
    "/api/v1/orders": contract.Orders,
    "/api/v1/audit": contract.AuditLines,
    "/api/v1/policy": contract.EffectivePolicy,
    "/api/v1/breaker": contract.BreakerState,
}


def test_answers_hold_what_the_contract_says_and_nothing_more(tmp_path):
    async def story():
        async with broken_node(tmp_path, ScriptedExecutor()) as bench:
            await bench.client.post("/api/v1/plans/1/approve", json=REASON)
            await carry_out(bench)
            (incident,) = await bench.incidents()
            paths = CONTRACT | {f"/api/v1/incidents/{incident['id']}": contract.IncidentDetail}
            for path, model in paths.items():
                answer = await bench.get(path)
                assert model.model_validate(answer).model_dump(mode="json") == answer, path

    play(story)


def test_the_contract_describes_every_route_with_its_scope_and_errors(tmp_path):
    async def story():
        async with server(tmp_path, tokens=tokens()) as bench:
            document = (await ask(bench, "GET", "/api/v1/openapi.json", "view")).json()
        assert not [path for path in document["paths"] if not path.startswith("/api/v1/")]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                assert "Scope: `" in operation["description"], (method, path)
                assert "application/problem+json" in operation["responses"]["401"]["content"]
                assert "200" in operation["responses"]
                if method == "post" and not path.endswith(("dry-run", "page-links")):
                    assert {"409", "412", "422"} <= set(operation["responses"]), path
        assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"

    play(story)


def test_no_odd_path_or_method_reaches_more_than_the_token_allows(tmp_path):
    async def story():
        nodes = ScriptedExecutor()
        async with broken_node(tmp_path, nodes, tokens=tokens()) as bench:
            body = {"reason": "because"}
            for path in ("/api/v1/plans/1/approve", "/api/v1/nodes/node-b/drain", "/api/v1/nodes/node-b/repaired"):
                for method in ("GET", "HEAD", "OPTIONS", "post", "PATCH", "QUERY", "POST"):
                    doubled = path.replace("/v1/", "//v1/")
                    for odd in (path, path + "/", path.upper(), "/" + path, doubled, path + "%2F"):
                        answer = await bench.client.request(method, odd, headers=bearer("view"), json=body)
                        assert answer.status_code in (307, 401, 403, 404, 405), (method, odd)
            for odd in ("breaker/reset", "breaker/reset/", "breaker%2Freset", "Breaker/reset"):
                answer = await ask(bench, "POST", f"/api/v1/{odd}", json=body)
                assert answer.status_code in (307, 403, 404), odd
            assert states(bench)[0] == "waiting"
            await carry_out(bench)
            assert nodes.asked == []

    play(story)
