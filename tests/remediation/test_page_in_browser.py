"""The status page in Chromium, from the real server: what an on-call engineer sees, and what a page must not do."""

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn
from instep_agent.wire import StepReport
from instep_collector.page.heat_map import heat_map
from instep_collector.store import audit
from instep_collector.tokens import read_token
from instep_remediation.policy import Policy
from instep_remediation.server.app import make_application
from instep_remediation.server.cli import listen
from instep_remediation.server.config import ServerConfig
from instep_remediation.server.runtime import Runtime

from tests.remediation.bench import Bench, FakeClock, play
from tests.remediation.fake_job import XID_79, FakeJob
from tests.remediation.scripted import WAITING, ScriptedExecutor

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("CI") != "true",
        reason="The status page is looked at in Chromium, which is missing: apt-get install chromium.",
    ),
]


@dataclass
class Site:
    """A running server, a browser, and every address that the browser asked for."""

    url: str
    bench: Bench
    browser: object
    asked: list[str] = field(default_factory=list)

    async def page(self, **options):
        """A new browser, without cookies."""
        context = await self.browser.new_context(viewport=options.pop("viewport", DESK), **options)
        context.set_default_timeout(15_000)
        context.on("request", lambda request: self.asked.append(request.url))
        return await context.new_page()

    async def link(self):
        answer = await self.bench.client.post("/api/v1/page-links")
        return answer.json()["page_link"]

    async def logged_in(self, *, may_decide=False, **options):
        page = await self.page(**options)
        await page.goto(await self.link() if may_decide else self.bench.runtime.page_link())
        return page


@asynccontextmanager
async def site(folder, nodes=None):
    from playwright.async_api import async_playwright

    clock = FakeClock()
    config = ServerConfig(state_dir=folder, listen="127.0.0.1:0")
    listener = listen(config)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    runtime = Runtime(config.model_copy(update={"listen": address}), Policy(), clock, nodes=nodes)
    runtime.open()
    headers = {"Authorization": f"Bearer {read_token(runtime.token_file)}"}
    settings = uvicorn.Config(make_application(runtime, is_watching=False), log_level="warning", ws="none")
    server = uvicorn.Server(settings)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers) as client, async_playwright() as tools:
        browser = await tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield Site(f"http://{address}", Bench(runtime, client, clock), browser)
        finally:
            await browser.close()
            server.should_exit = True
            await serving
            listener.close()


async def train(bench, job, **healthy):
    """The job's first steps, long enough for a slow rank to be believed."""
    await bench.report(job.opened())
    await bench.send(*job.frames(job.healthy(**healthy), bench.clock))
    for _ in range(12 if healthy else 8):
        job.step += 2
        await bench.send(*job.frames(job.healthy(2, **healthy), bench.clock))
        await bench.tick(0.3)


async def fall_off_the_bus(bench, job, *, slow=True):
    """Rank 2 dies while its GPU reports Xid 79; its ranks move, and the drain of its node waits for somebody."""
    await train(bench, job, **({"slow": {2: 1.4}} if slow else {}))
    await bench.send(*job.frames(job.healthy(1), bench.clock, {"node-b": (job.xid(text=f"{XID_79} {HOSTILE}"),)}))
    await bench.report(job.exited(2))
    await bench.tick(0.1)


async def is_wider_than_the_screen(page):
    return await page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


def test_the_one_time_link_opens_the_page_once(tmp_path):
    async def story():
        async with site(tmp_path) as here:
            await train(here.bench, FakeJob())
            link = await here.link()
            first, second = await here.page(), await here.page()
            assert (await first.goto(link)).status == 200
            assert first.url == f"{here.url}/", "the link's secret stays in no address bar"
            assert (await first.reload()).status == 200
            answer = await second.goto(link)
            assert answer.status == 401
            assert "used before" in await second.inner_text("body")

    play(story)


def test_a_link_followed_from_another_site_opens_the_page_too(tmp_path):
    """Links stand in chats and alerts; a browser sends a strict cookie on no way that begins there."""

    async def story():
        async with site(tmp_path) as here:
            await train(here.bench, FakeJob())
            page = await here.page()
            chat = f'<a id="once" href="{await here.link()}">page</a> <a id="later" href="{here.url}/">again</a>'
            await page.route("http://chat.test/", lambda route: route.fulfill(content_type="text/html", body=chat))
            for link in ("#once", "#later"):
                await page.goto("http://chat.test/")
                await page.click(link)
                await page.wait_for_url(f"{here.url}/")
                assert await page.locator("h3", has_text="gpt").count() == 1, link

    play(story)


def test_without_a_session_nothing_is_shown(tmp_path):
    async def story():
        async with site(tmp_path) as here:
            await fall_off_the_bus(here.bench, FakeJob())
            (incident, *_) = await here.bench.incidents()
            page = await here.page()
            shown = (f"/incidents/{incident['id']}", "/plans/1", "/nodes/node-b", "/page.js")
            for path in ("/", *shown, "/?link=guess", "/api/v1/incidents", "/metrics"):
                answer = await page.goto(here.url + path)
                assert answer.status == 401, path
                said = await page.content()
                assert not any(word in said for word in ("gpt", "node-b", "Xid", "run-1")), path
            await here.logged_in()
            assert (await page.goto(here.url)).status == 401, "a session is one browser's"

    play(story)


def test_the_page_shows_what_where_why_how_sure_what_was_done_and_what_is_next(tmp_path):
    async def story():
        async with site(tmp_path) as here:
            await fall_off_the_bus(here.bench, FakeJob())
            page = await here.logged_in()
            assert await page.title() == "(2) Instep"
            first = page.locator("article").first
            shown = await first.inner_text()
            (incident, *_) = (one for one in await here.bench.incidents() if one["kind"] == "crash")
            since = incident["timeline"]["onset_at"][:19].replace("T", " ")
            for words in (
                "crash",
                "Rank 2 on node-b was killed by SIGKILL",
                f"since {since} UTC",
                "rank 2 on node-b",
                "GPU fault · owner: node",
                "0.99",
                "Xid 79 on node-b GPU 0: the GPU has fallen off the bus. (kernel log)",
                "A restart without node-b was ordered",
                "Drain the node",
                "docs/runbooks/crash.md",
            ):
                assert words in shown, words
            await first.get_by_role("link", name="Timeline and plan").click()
            timeline = await page.locator("table").inner_text()
            assert all(word in timeline for word in ("onset", "alarm", "verdict", "restart ordered"))
            assert "resolved" not in timeline
            assert "before the verdict" in await page.locator("article").first.inner_text()
            plan = page.locator("article", has=page.locator(".actions"))
            said = await plan.inner_text()
            assert "restart job gpt" in said and "drain node node-b" in said
            made = ["·cordon node-b planned", "·evict node-b planned"]
            assert await plan.locator(".steps li").all_inner_texts() == made
            assert 'The executor "print" changes nothing' in said

    play(story)


def test_a_job_with_an_open_incident_is_not_green_and_its_slow_rank_stands_out(tmp_path):
    async def story():
        async with site(tmp_path) as here:
            await fall_off_the_bus(here.bench, FakeJob())
            await train(here.bench, FakeJob(job="calm", run="run-2"))
            page = await here.logged_in()
            ill, calm = page.locator("section", has_text="run run-1"), page.locator("section", has_text="run run-2")
            assert await ill.locator(".pill").all_inner_texts() == ["crash", "straggler"]
            assert await calm.locator(".pill").all_inner_texts() == ["running"]
            assert "fine" not in await ill.get_attribute("class") and "fine" in await calm.get_attribute("class")
            cells = ill.locator("svg rect")
            assert await cells.count() == 4 * 60
            hot = ill.locator("svg rect.h4")
            assert await hot.count() >= 54
            assert "rank 2 on node-b" in await hot.first.locator("title").text_content()
            ordinary = await ill.locator("svg rect.h1").first.evaluate("cell => getComputedStyle(cell).fill")
            assert await hot.first.evaluate("cell => getComputedStyle(cell).fill") != ordinary

    play(story)


def test_a_rank_that_nobody_reports_is_shown_as_unknown(tmp_path):
    async def story():
        async with site(tmp_path) as here:
            job = FakeJob()
            await train(here.bench, job)
            for _ in range(8):
                job.step += 1
                ranks = [rank for rank in job.healthy(1) if rank.node == "node-a"]
                await here.bench.send(job.frame("node-a", ranks, here.bench.clock))
                await here.bench.tick(0.5)
            page = await here.logged_in()
            pills = await page.locator("section .pill").all_inner_texts()
            assert pills == ["running", "2 of 4 ranks unknown"]
            assert await page.locator("section.fine").count() == 0
            assert "nothing open" in await page.locator("header").inner_text()

    play(story)


def test_what_a_job_calls_itself_is_shown_as_text_and_nothing_leaves_the_server(tmp_path):
    async def story():
        async with site(tmp_path) as here:
            await fall_off_the_bus(here.bench, FakeJob(job=HOSTILE))
            page = await here.logged_in()
            complaints = []
            page.on("console", lambda message: complaints.append(message.text))
            (incident, *_) = await here.bench.incidents()
            for path in ("/", f"/incidents/{incident['id']}", "/plans/2", "/nodes/node-b"):
                await page.goto(here.url + path)
                assert HOSTILE in await page.inner_text("main")
                assert await page.locator("img, link, iframe, object, form, script:not([src='/page.js'])").count() == 0
                assert "pwned" not in await page.title()
            assert complaints == []
            assert {address.removeprefix(here.url)[:1] for address in here.asked} == {"/"}, here.asked

    play(story)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_on_a_phone(tmp_path, scheme):
    async def story():
        async with site(tmp_path) as here:
            await fall_off_the_bus(here.bench, FakeJob(job="a" * 120, run="r" * 60))
            page = await here.logged_in(viewport=PHONE, color_scheme=scheme)
            assert not await is_wider_than_the_screen(page)
            back, ink = await page.evaluate(
                "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name].match(/\\d+/g)[0])"
            )
            assert (int(back) > int(ink)) == (scheme == "light")
            await page.get_by_role("link", name="Timeline and plan").first.click()
            assert not await is_wider_than_the_screen(page)

    play(story)


def decided(bench):
    with bench.runtime.store.begin() as session:
        return [(line.actor, line.action, line.reason) for line in audit.find(session, actor="admin", limit=10)]


def test_an_operator_approves_a_plan_and_sees_what_becomes_of_it(tmp_path):
    async def story():
        async with site(tmp_path, ScriptedExecutor(evict=[WAITING])) as here:
            job = FakeJob()
            await fall_off_the_bus(here.bench, job, slow=False)
            (order,) = await here.bench.orders()
            await here.bench.report(*job.restarted(order["id"], ("node-a", "node-c")))
            page = await here.logged_in(may_decide=True)
            await page.clock.install()
            plan = page.locator("article", has=page.get_by_role("link", name="Plan 1"))
            assert "waits for you" in await plan.inner_text()
            await plan.get_by_role("button", name="Approve").click()
            assert page.url == f"{here.url}/", "a browser asks for the reason first"
            await plan.get_by_label("Reason").fill("The GPU fell off the bus.")
            await plan.get_by_role("button", name="Approve").click()
            await page.wait_for_url(f"{here.url}/plans/1")
            assert decided(here.bench) == [("admin", "approve", "The GPU fell off the bus.")]
            for _ in range(2):
                await here.bench.runtime.runner.tick()
            await page.clock.run_for(9_000)
            await page.get_by_text("2 pods are still ending").wait_for()
            assert "executing" in await page.locator("article .row").first.inner_text()
            assert await page.locator(".steps li").first.inner_text() == "✓cordon node-b done: cordon is done."
            who = await page.locator("table").inner_text()
            assert "admin" in who and "approve" in who and "The GPU fell off the bus." in who
            assert await page.get_by_role("button").all_inner_texts() == ["Cancel"]
            here.bench.clock.move(6.0)
            await here.bench.runtime.runner.tick()
            await page.clock.run_for(9_000)
            await page.locator("article .row .good", has_text="done").wait_for()
            await page.goto(f"{here.url}/nodes/node-b")
            assert "out of service by admin" in await page.locator("main").inner_text()

    play(story)


def test_without_scripts_a_plan_is_rejected_from_the_keyboard(tmp_path):
    async def story():
        async with site(tmp_path, ScriptedExecutor()) as here:
            await fall_off_the_bus(here.bench, FakeJob(), slow=False)
            page = await here.logged_in(may_decide=True, java_script_enabled=False)
            await page.get_by_label("Reason").first.focus()
            await page.keyboard.type("It was a drill.")
            await page.keyboard.press("Tab")
            await page.keyboard.press("Tab")
            async with page.expect_navigation():
                await page.keyboard.press("Enter")
            assert page.url == f"{here.url}/plans/1"
            assert decided(here.bench) == [("admin", "reject", "It was a drill.")]

    play(story)


def test_a_session_that_may_look_sees_no_button(tmp_path):
    async def story():
        async with site(tmp_path, ScriptedExecutor()) as here:
            await fall_off_the_bus(here.bench, FakeJob(), slow=False)
            (incident, *_) = (one for one in await here.bench.incidents() if one["kind"] == "crash")
            page = await here.logged_in()
            for path in ("/", "/plans/1", "/nodes/node-b", f"/incidents/{incident['id']}"):
                await page.goto(here.url + path)
                assert await page.locator("button, form, input, textarea").count() == 0, path
                assert "may look only" in await page.locator("header").inner_text()
                assert "This session may look only." in await page.locator("main").inner_text()

    play(story)


def test_the_form_of_another_site_decides_nothing(tmp_path):
    async def story():
        async with site(tmp_path, ScriptedExecutor()) as here:
            await fall_off_the_bus(here.bench, FakeJob(), slow=False)
            page = await here.logged_in(may_decide=True)
            trap = (
                f'<form method="post" action="{here.url}/plans/1/approve"><input name="reason" value="Free gifts">'
                '<input name="version" value=""><button>Win</button></form>'
            )
            await page.route("http://trap.test/", lambda route: route.fulfill(content_type="text/html", body=trap))
            await page.goto("http://trap.test/")
            await page.click("button")
            await page.wait_for_url(f"{here.url}/plans/1/approve")
            assert "link" in await page.inner_text("body"), "the cookie is not sent: nobody is known"
            assert decided(here.bench) == []

    play(story)


def test_what_somebody_types_stays_and_the_rest_is_brought_up_to_date(tmp_path):
    async def story():
        async with site(tmp_path, ScriptedExecutor()) as here:
            await fall_off_the_bus(here.bench, FakeJob(), slow=False)
            page = await here.logged_in(may_decide=True)
            await page.clock.install()
            await page.goto(here.url)
            before = await page.locator(".now").inner_text()
            await page.get_by_label("Reason").first.fill("The GPU")
            here.bench.clock.move(60.0)
            await page.clock.run_for(9_000)
            assert await page.get_by_label("Reason").first.input_value() == "The GPU"
            assert await page.locator(".now").inner_text() == before
            await page.get_by_label("Reason").first.fill("")
            await page.get_by_role("link", name="Plan 1").focus()
            async with page.expect_response(f"{here.url}/"):
                await page.clock.run_for(9_000)
            await page.wait_for_function("before => document.querySelector('.now').innerText !== before", arg=before)
            assert await page.evaluate("document.activeElement.innerText") == "Plan 1", "the focus stays where it was"

    play(story)


def test_a_server_that_does_not_answer_is_told_of_and_the_page_stays(tmp_path):
    async def story():
        async with site(tmp_path) as here:
            await fall_off_the_bus(here.bench, FakeJob())
            page = await here.logged_in()
            await page.clock.install()
            await page.goto(here.url)
            assert not await page.locator("#stale").is_visible()
            await page.route("**/*", lambda route: route.abort())
            await page.clock.run_for(5_000)
            await page.locator("#stale").wait_for(state="visible")
            assert "Rank 2 on node-b" in await page.locator("main").inner_text()
            await page.unroute("**/*")
            await page.clock.run_for(6_000)
            await page.locator("#stale").wait_for(state="hidden")

    play(story)


def test_a_job_that_goes_on_is_well_while_its_node_waits_for_repair(tmp_path):
    async def story():
        async with site(tmp_path) as here:
            job = FakeJob()
            await fall_off_the_bus(here.bench, job, slow=False)
            (order,) = await here.bench.orders()
            await here.bench.report(*job.restarted(order["id"], ("node-a", "node-c")))
            await here.bench.send(*job.frames(job.healthy(2), here.bench.clock))
            page = await here.logged_in()
            words = f"The job goes on since step {job.step + 1}; node node-b waits for repair."
            assert words in await page.locator("article").first.inner_text()
            header = await page.locator("header").inner_text()
            assert "1 waits for repair" in header and "open" not in header
            section = page.locator("section", has_text="run run-1")
            assert await section.locator(".pill").all_inner_texts() == ["crash, node waits for repair", "running"]
            assert "fine" in await section.get_attribute("class")
            await page.get_by_role("table").get_by_role("link", name="node-b").click()
            await page.wait_for_url(f"{here.url}/nodes/node-b")
            main = await page.locator("main").inner_text()
            assert words in main and "instep nodes repaired node-b" in main and "Plan 1" in main
            await here.bench.post("/api/v1/nodes/node-b/repaired", reason="A new GPU.")
            await page.reload()
            assert "Nothing is open about this node." in await page.locator("main").inner_text()

    play(story)


CONTRASTS = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const back = one => { for (; one; one = one.parentElement) {
    const color = rgb(getComputedStyle(one).backgroundColor); if (color.length < 4 || color[3] > 0) return color; } };
  const texts = [...document.querySelectorAll("body *")].filter(one => !one.closest("svg, .skip, [hidden]")
    && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  return texts.map(one => { const a = light(rgb(getComputedStyle(one).color)), b = light(back(one));
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), one.outerHTML.slice(0, 80)]; });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_either_scheme_and_every_control_has_a_name(tmp_path, scheme):
    async def story():
        async with site(tmp_path, ScriptedExecutor()) as here:
            await fall_off_the_bus(here.bench, FakeJob(), slow=False)
            page = await here.logged_in(may_decide=True, color_scheme=scheme)
            for path in ("/", "/plans/1", "/nodes/node-b"):
                await page.goto(here.url + path)
                found = await page.evaluate(CONTRASTS)
                assert len(found) > 20
                assert [words for ratio, words in found if ratio < 4.5] == [], path
                for control in await page.locator("textarea").all():
                    assert await control.evaluate("one => one.labels.length") == 1
                assert await page.locator("h1").count() == 1

    play(story)


def test_a_wide_job_shows_its_slowest_ranks():
    def steps(seconds):
        return [StepReport(step=step, wall_seconds=1.0, wait_seconds=1.0 - seconds) for step in range(20)]

    drawn = heat_map({rank: steps(0.9 if rank in (7, 170) else 0.5) for rank in range(200)}, {170: "node-x"})
    assert drawn.rows == 64 and drawn.hidden_ranks == 136
    assert (170, "node-x") in drawn.labels and [rank for rank, _ in drawn.labels] == sorted(
        rank for rank, _ in drawn.labels
    )
    assert {drawn.labels[cell.row][0] for cell in drawn.cells if cell.level == "h5"} == {7, 170}
