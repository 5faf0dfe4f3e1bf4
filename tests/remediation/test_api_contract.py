"""The API answers whatever its OpenAPI document allows, and what it does not, as that document says: for every scope,
on a store with incidents, plans and nodes in it.
"""

import asyncio

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from instep_remediation.server.app import make_application
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.remediation.scripted import ScriptedExecutor
from tests.remediation.test_http import TOKENS, tokens
from tests.remediation.test_plan_life import broken_node, carry_out, decide, known

CONFORMANCE = (
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
EXAMPLES = {"none": 1, "agent": 1, "view": 4, "operate": 5, "admin": 2}
"""Of each operation, for a token of each scope."""
SEED = 20_261


def bounded(examples: int):
    """Seeded and without a database of examples: every run asks the same."""
    return lambda test: seed(SEED)(
        settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )(test)
    )


async def filled(folder):
    """A server's application with plans in several states, and the ids that its store knows."""
    async with broken_node(folder, ScriptedExecutor(), tokens=tokens()) as bench:
        await known(bench, "node-x")
        decide(bench, "approve", 1, "ada", "yes")
        await carry_out(bench)
        decide(bench, "change_node", "node-x", "cordon", "ada", "noise")
        await carry_out(bench)
        (incident,) = await bench.incidents()
        app = make_application(bench.runtime, is_watching=False)
        ids = {
            "plans": {"id": st.integers(1, 2)},
            "incidents": {"id": st.just(incident["id"])},
            "nodes": {"node": st.sampled_from(["node-b", "node-x"])},
            "jobs": {"run": st.just("run-1")},
        }
        await asyncio.to_thread(ask_everything, app, ids, bench.runtime)


def headers_of(scope, runtime):
    if scope == "none":
        return {}
    token = runtime.token_file.read_text().strip() if scope == "admin" else TOKENS[scope]
    return {"Authorization": f"Bearer {token}"}


def ask_everything(app, ids, runtime):
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=headers_of("view", runtime))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 25
    answered = {scope: set() for scope in EXAMPLES}
    for scope, examples in EXAMPLES.items():
        headers = headers_of(scope, runtime)
        for operation in operations:
            ask_allowed(operation, ids, headers, examples, answered[scope])
            if scope == "operate":
                ask_refused(operation, headers, examples)
    assert (answered["none"], answered["agent"]) == ({401}, {403})
    assert {200, 403, 404} <= answered["view"]
    assert {200, 403, 404, 409, 412} <= answered["operate"]
    assert {200, 404} <= answered["admin"] and 403 not in answered["admin"]


def ask_allowed(operation, ids, headers, examples, answered):
    """Ask what the document allows, with known ids every other time."""
    mine = ids.get(operation.path.split("/")[3], {}) if "{" in operation.path else {}

    @bounded(examples)
    @given(
        case=operation.as_strategy(),
        known_ids=st.one_of(st.none(), st.fixed_dictionaries(mine)),
        is_conditional=st.booleans(),
    )
    def ask(case, known_ids, is_conditional):
        if known_ids:
            case.path_parameters = known_ids
            if not is_conditional:
                case.headers.pop("If-Match", None)
        answer = case.call(headers=headers)
        answered.add(answer.status_code)
        case.validate_response(answer, checks=list(CONFORMANCE))

    ask()


def ask_refused(operation, headers, examples):
    """Ask what the document does not allow: it is refused, with a problem."""

    @bounded(examples)
    @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def ask(case):
        answer = case.call(headers=headers)
        case.validate_response(answer, checks=[*CONFORMANCE, negative_data_rejection])

    ask()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_operation_keeps_the_contract_for_every_scope(tmp_path):
    asyncio.run(filled(tmp_path))
