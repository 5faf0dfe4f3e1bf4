"""Faults on order befall the next requests that match, and no others."""

from __future__ import annotations

import pytest
import urllib3
from kubernetes import client
from kubernetes.client.rest import ApiException

from tests.cluster.api_server import ApiServer


@pytest.mark.parametrize("code", [409, 429, 500, 503])
def test_an_ordered_answer_comes_as_often_as_ordered(server: ApiServer, api: client.ApiClient, code: int):
    core = client.CoreV1Api(api)
    fault = server.inject(verb="patch", resource="nodes", code=code, count=2)
    for _ in range(2):
        with pytest.raises(ApiException) as failed:
            core.patch_node("node-a", {"spec": {"unschedulable": True}})
        assert failed.value.status == code
    core.list_node()
    assert not core.read_node("node-a").spec.unschedulable
    core.patch_node("node-a", {"spec": {"unschedulable": True}})
    assert fault.hits == 2


def test_an_answer_can_be_lost_after_its_effect(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    server.inject(verb="patch", resource="nodes", code=500, is_after=True)
    with pytest.raises(ApiException):
        core.patch_node("node-a", {"spec": {"unschedulable": True}})
    assert core.read_node("node-a").spec.unschedulable is True


@pytest.mark.parametrize("is_after", [False, True])
def test_a_connection_can_be_cut(server: ApiServer, api: client.ApiClient, is_after: bool):
    core = client.CoreV1Api(api)
    server.inject(verb="create", resource="namespaces", closes=True, is_after=is_after)
    with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.MaxRetryError)):
        core.create_namespace({"metadata": {"name": "new"}}, _request_timeout=10)
    assert server.exists("Namespace", "new") is is_after
    core.list_node()


def test_an_answer_can_be_late(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    fault = server.inject(verb="patch", latency_seconds=0.5)
    with pytest.raises(urllib3.exceptions.HTTPError):
        core.patch_node("node-a", {"spec": {"unschedulable": True}}, _request_timeout=0.05)
    assert fault.hits == 1
    core.patch_node("node-b", {"spec": {"unschedulable": True}}, _request_timeout=10)
    server.wait_until(lambda: bool(server.get("Node", "node-a")["spec"].get("unschedulable")))


def test_the_official_client_repeats_by_itself_what_may_be_done_twice(server: ApiServer, api: client.ApiClient):
    core = client.CoreV1Api(api)
    faults = [server.inject(verb=verb, closes=True) for verb in ("list", "update", "delete")]
    node = core.list_node().items[0]
    core.replace_node("node-a", node)
    core.delete_node("node-a")
    assert [fault.hits for fault in faults] == [1, 1, 1]
    once = server.inject(verb="patch", closes=True)
    with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.MaxRetryError)):
        core.patch_node("node-b", {"spec": {"unschedulable": True}})
    assert once.hits == 1
    assert server.calls()[-1].verb == "patch"


def test_a_delete_whose_answer_was_lost_is_repeated_and_finds_nothing(server: ApiServer, api: client.ApiClient):
    server.inject(verb="delete", closes=True, is_after=True)
    with pytest.raises(ApiException) as again:
        client.CoreV1Api(api).delete_node("node-a")
    assert again.value.status == 404
