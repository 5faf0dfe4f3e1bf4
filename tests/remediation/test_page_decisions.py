"""Who may decide on the page, over the real application: links, sessions, forms, and what another site could try."""

import hashlib
import re
from contextlib import asynccontextmanager

import httpx
import pytest
from instep_collector.store import audit, plans
from instep_collector.tokens import Scope
from instep_remediation.server.config import TokenConfig

from tests.remediation.bench import play
from tests.remediation.scripted import ScriptedExecutor
from tests.remediation.test_plan_life import broken_node, states

TOKENS = {"ada": "operate", "viv": "view", "node": "agent"}


def secret(name):
    return f"{name}-{'0' * 20}"


def tokens():
    hashes = {name: hashlib.sha256(secret(name).encode()).hexdigest() for name in TOKENS}
    return tuple(
        TokenConfig(name=name, sha256=hashes[name], scopes=frozenset({Scope(scope)})) for name, scope in TOKENS.items()
    )


@asynccontextmanager
async def trouble(folder, nodes=None):
    """A server with a plan that waits, and its clients."""
    async with broken_node(folder, nodes or ScriptedExecutor(), tokens=tokens()) as bench:
        yield bench


async def link(bench, name):
    answer = await bench.client.post("/api/v1/page-links", headers={"Authorization": f"Bearer {secret(name)}"})
    assert answer.status_code == 200, answer.text
    return "/?" + httpx.URL(answer.json()["page_link"]).query.decode()


async def browser(bench, address):
    """A client without a token that has opened a link."""
    made = httpx.AsyncClient(transport=bench.client._transport, base_url="http://instep")
    answer = await made.get(address)
    assert answer.status_code == 303, answer.text
    return made


async def form(client, path="/plans/1"):
    """The hidden fields of the form on a page."""
    text = (await client.get(path)).text
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text))


def decisions(bench):
    with bench.runtime.store.begin() as session:
        return [
            (line.actor, line.action, line.reason)
            for line in audit.find(session, subject="plan 1", limit=10)
            if line.action != "plan"
        ]


def test_an_operators_session_approves_in_the_operators_name(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            ada = await browser(bench, await link(bench, "ada"))
            answer = await ada.post("/plans/1/approve", data={**await form(ada), "reason": " The GPU\r\n fell off. "})
            assert (answer.status_code, answer.headers["location"]) == (303, "/plans/1")
            assert states(bench)[0] == "approved"
            assert decisions(bench) == [("ada", "approve", "The GPU fell off.")]
            assert "ada" in (await ada.get("/plans/1")).text

    play(story)


def test_the_administrators_session_decides_and_can_do_nothing_else(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            address = (await bench.client.post("/api/v1/page-links")).json()["page_link"]
            admin = await browser(bench, "/?" + httpx.URL(address).query.decode())
            answer = await admin.post("/plans/1/reject", data={**await form(admin), "reason": "A drill."})
            assert answer.status_code == 303
            assert states(bench)[0] == "rejected" and decisions(bench) == [("admin", "reject", "A drill.")]
            for method, path in (("POST", "/api/v1/breaker/reset"), ("GET", "/api/v1/plans"), ("GET", "/metrics")):
                assert (await admin.request(method, path)).status_code == 401, path

    play(story)


@pytest.mark.parametrize("holder", ["viv", "start"])
def test_a_session_that_may_look_sees_no_form_and_is_refused(tmp_path, holder):
    async def story():
        async with trouble(tmp_path) as bench:
            ada = await browser(bench, await link(bench, "ada"))
            at_start = "/?" + httpx.URL(bench.runtime.page_link()).query.decode()
            viewer = await browser(bench, at_start if holder == "start" else await link(bench, holder))
            page = (await viewer.get("/plans/1")).text
            assert "<form" not in page and "<button" not in page and "may look only" in page
            assert "form-action 'none'" in (await viewer.get("/plans/1")).headers["content-security-policy"]
            answer = await viewer.post("/plans/1/approve", data={**await form(ada), "reason": "Mine."})
            assert answer.status_code == 403 and "instep page link" in answer.text
            assert states(bench)[0] == "waiting" and decisions(bench) == []

    play(story)


def test_an_agents_token_gets_no_link(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            headers = {"Authorization": f"Bearer {secret('node')}"}
            assert (await bench.client.post("/api/v1/page-links", headers=headers)).status_code == 403

    play(story)


@pytest.mark.parametrize(
    "attack",
    [
        {"data": {"token": None}},
        {"data": {"token": "0" * 64}},
        {"data": {"token": "Ü"}},
        {"data": {"token": "another"}},
        {"headers": {"Sec-Fetch-Site": "cross-site"}},
        {"headers": {"Sec-Fetch-Site": "same-site"}},
        {"headers": {"Content-Type": "text/plain"}},
    ],
    ids=str,
)
def test_a_form_that_was_not_made_for_the_session_decides_nothing(tmp_path, attack):
    async def story():
        async with trouble(tmp_path) as bench:
            ada, other = await browser(bench, await link(bench, "ada")), await browser(bench, await link(bench, "ada"))
            fields = {**await form(ada), "reason": "Mine.", **attack.get("data", {})}
            if fields["token"] == "another":
                fields["token"] = (await form(other))["token"]
            fields = {name: value for name, value in fields.items() if value is not None}
            answer = await ada.post("/plans/1/approve", data=fields, headers=attack.get("headers", {}))
            assert answer.status_code == 403 and "not made for your session" in answer.text
            assert states(bench)[0] == "waiting" and decisions(bench) == []
            own = await ada.post("/plans/1/approve", data={**await form(ada), "reason": "Mine."})
            assert own.status_code == 303 and states(bench)[0] == "approved"

    play(story)


def test_a_programs_token_decides_over_the_api_and_not_with_a_form(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            ada = await browser(bench, await link(bench, "ada"))
            answer = await bench.client.post("/plans/1/approve", data={**await form(ada), "reason": "Mine."})
            assert answer.status_code == 403 and states(bench)[0] == "waiting"

    play(story)


@pytest.mark.parametrize("reason", ["", "  \n ", "x" * 1001])
def test_a_decision_needs_a_reason_of_a_sensible_length(tmp_path, reason):
    async def story():
        async with trouble(tmp_path) as bench:
            ada = await browser(bench, await link(bench, "ada"))
            answer = await ada.post("/plans/1/approve", data={**await form(ada), "reason": reason})
            assert answer.status_code == 409 and "A reason is needed" in answer.text
            assert states(bench)[0] == "waiting"

    play(story)


def test_who_decides_on_what_has_changed_meanwhile_is_told_so(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            ada = await browser(bench, await link(bench, "ada"))
            seen = await form(ada)
            assert (await ada.post("/plans/1/reject", data={**seen, "reason": "No."})).status_code == 303
            answer = await ada.post("/plans/1/approve", data={**seen, "reason": "Yes."})
            assert answer.status_code == 409 and "has changed" in answer.text
            assert 'data-refresh=""' in answer.text, "a page that answers a form is not loaded anew"
            assert states(bench)[0] == "rejected"
            answer = await ada.post("/plans/99/approve", data={**seen, "reason": "Yes."})
            assert answer.status_code == 404
            assert (await ada.post("/plans/1/burn", data={**seen, "reason": "Yes."})).status_code == 404
            assert (await ada.get("/plans/1/approve")).headers["location"] == "/plans/1"

    play(story)


def test_what_may_be_decided_ends_before_the_session_does(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            ada = await browser(bench, await link(bench, "ada"))
            fields = await form(ada)
            bench.clock.move(2 * 3600 + 1)
            page = await ada.get("/plans/1")
            assert page.status_code == 200 and "<form" not in page.text
            assert (await ada.post("/plans/1/approve", data={**fields, "reason": "Late."})).status_code == 403
            bench.clock.move(10 * 3600)
            assert (await ada.get("/plans/1")).status_code == 401
            assert states(bench)[0] == "waiting"

    play(story)


def test_a_link_that_lets_decide_is_worth_nothing_after_ten_minutes(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            late, old = await link(bench, "ada"), await link(bench, "viv")
            bench.clock.move(601)
            assert (await bench.client.get(late)).status_code == 401
            assert (await bench.client.get(old)).status_code == 303, "one that only shows keeps"

    play(story)


def test_with_an_executor_that_changes_nothing_a_plan_can_be_rejected_only(tmp_path):
    async def story():
        class Printing(ScriptedExecutor):
            name, is_changing = "print", False

        async with trouble(tmp_path, Printing()) as bench:
            ada = await browser(bench, await link(bench, "ada"))
            page = (await ada.get("/")).text
            assert "/plans/1/reject" in page and "/plans/1/approve" not in page
            assert "The executor &#34;print&#34; changes nothing" in page

    play(story)


def test_an_executor_that_cannot_tell_its_steps_takes_no_page_down(tmp_path, caplog):
    async def story():
        nodes = ScriptedExecutor()
        nodes.steps = lambda action, mark: 1 / 0
        async with trouble(tmp_path, nodes) as bench:
            answer = await bench.client.get("/")
            assert answer.status_code == 200 and "its steps cannot be told" in answer.text
        assert "ZeroDivisionError" in caplog.text

    play(story)


def test_a_failed_plan_can_be_carried_on_and_an_approved_one_cancelled(tmp_path):
    from tests.remediation.scripted import FAILED

    async def story():
        nodes = ScriptedExecutor(evict=[FAILED])
        async with trouble(tmp_path, nodes) as bench:
            ada = await browser(bench, await link(bench, "ada"))

            async def decide(verb):
                answer = await ada.post(f"/plans/1/{verb}", data={**await form(ada, "/"), "reason": f"{verb}, I say."})
                assert answer.status_code == 303, answer.text

            await decide("approve")
            for _ in range(5):
                await bench.runtime.runner.tick()
            assert states(bench)[0] == "failed"
            assert "The node is gone." in (await ada.get("/")).text
            await decide("execute")
            await decide("cancel")
            assert states(bench)[0] == "cancelled"
            assert {line[0] for line in decisions(bench)} == {"ada"}
            assert [line[1] for line in decisions(bench)] == ["cancel", "execute", "approve"]

    play(story)


def test_who_only_looks_at_a_link_does_not_use_it_up(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            address = await link(bench, "ada")
            for _ in range(3):
                looked = await bench.client.head(address)
                assert (looked.status_code, looked.content) == (200, b"") and "set-cookie" not in looked.headers
            assert (await bench.client.get(address)).status_code == 303
            assert (await bench.client.get(address)).status_code == 401

    play(story)


def test_https_makes_the_cookie_secure(tmp_path):
    async def story():
        async with broken_node(tmp_path, ScriptedExecutor(), public_url="https://instep.example.org") as bench:
            link = bench.runtime.page_link()
            assert link.startswith("https://instep.example.org/?link=")
            answer = await bench.client.get("/?" + httpx.URL(link).query.decode())
            assert answer.headers["set-cookie"].endswith("; Secure")

    play(story)


def test_a_plan_made_by_hand_has_its_page(tmp_path):
    async def story():
        async with trouble(tmp_path) as bench:
            made = await bench.post("/api/v1/nodes/node-c/cordon", reason="New firmware.")
            page = (await bench.client.get(f"/plans/{made['id']}")).text
            assert "made by hand" in page and "cordon node node-c" in page and "New firmware." in page
            with bench.runtime.store.begin() as session:
                assert plans.get(session, made["id"]).incident is None
            node = (await bench.client.get("/nodes/node-c")).text
            assert f"/plans/{made['id']}" in node and "New firmware." in node
            assert (await bench.client.get("/nodes/nobody")).status_code == 404

    play(story)
