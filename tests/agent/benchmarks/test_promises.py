"""The measurements of the agent's promises: over a real server and a real agent, and each broken promise is noticed."""

from dataclasses import replace

import pytest
from instep_agent.benchmarks.faults import inject, measure_faults, times_kept
from instep_agent.benchmarks.hang import CALL, Hang, Turns, measure_hang
from instep_agent.benchmarks.outage import Outage, is_oldest_first, measure_outage, missing_between
from instep_agent.benchmarks.process_table import Process
from instep_agent.benchmarks.real_server import RealServer
from instep_agent.benchmarks.receiver import Stored
from instep_agent.benchmarks.relay import Acknowledged, Relay
from instep_agent.benchmarks.simulated_node import SimulatedNode
from instep_agent.errors import ConfigurationInvalid

from tests import services

SPOOL_BYTES = 1 << 16


def started(**options):
    """A node in a `with`, where it can be built."""
    services.needed("gcc libc6-dev", "gcc")
    try:
        return SimulatedNode(**options).__enter__()
    except ConfigurationInvalid as error:
        if "nvidia-nvml-dev" not in str(error):
            raise
        services.cannot(str(error))


@pytest.fixture(scope="module")
def node():
    node = started(receiver=RealServer)
    yield node
    node.__exit__(None, None, None)


def test_faults_are_read_back_from_the_real_servers_store_once_each(node):
    found = measure_faults(node, 4)
    assert (len(found.kernel_line), len(found.nvml_event), found.lost, found.doubled) == (2, 2, 0, 0)


def test_a_call_that_hangs_is_named_and_everything_else_goes_on(node):
    found = measure_hang(node, 10.0, watch_seconds=2.0)
    assert found.finding is not None and CALL in found.finding.text
    assert found.recovered is not None
    assert (found.left, found.left_at_end, len(found.after)) == ([], [], len(found.before))
    assert {"kernel_log", "rank_records", "rdma_ports"} <= {one.source for one in found.turns}
    assert max(found.line_seconds) < float("inf")


def test_nothing_is_lost_or_doubled_when_the_server_was_away_and_samples_go_before_faults():
    relays = []

    def receiver(folder):
        relays.append(Relay(RealServer(folder)))
        return relays[0]

    node = started(receiver=receiver, settings=f"spool_bytes_max = {SPOOL_BYTES}\n")
    try:
        found = measure_outage(node, relays[0], 8.0, faults=4, spool_bytes_max=SPOOL_BYTES)
    finally:
        node.__exit__(None, None, None)
    assert (found.lost, found.doubled, found.unsaved, found.torn) == (0, 0, 0, 0)
    assert found.is_in_order and found.is_oldest_first
    assert found.missing > 0, "the spool was too small for all samples"
    assert found.spool_bytes <= SPOOL_BYTES
    assert found.kills == 2


class Unstartable:
    """A server that does not come up."""

    is_closed = False

    def start(self):
        raise ConfigurationInvalid("it said nothing")

    def close(self):
        self.is_closed = True


def test_a_relay_whose_server_does_not_come_up_ends():
    relay = Relay(Unstartable())
    with pytest.raises(ConfigurationInvalid):
        relay.start()
    relay.close()
    assert relay.server.is_closed


def test_a_broken_promise_about_an_outage_is_noticed():
    kept = Outage(10.0, 1000, spool_bytes=900, disk_bytes=950, kills=1, is_in_order=True, is_oldest_first=True)
    assert kept.is_within
    for broken in (
        {"lost": 1}, {"doubled": 1}, {"torn": 1}, {"unsaved": 1}, {"missing": 9}, {"told": 9}, {"again": 1},
        {"is_in_order": False}, {"is_oldest_first": False}, {"spool_bytes": 1001}, {"disk_bytes": 1100},
    ):  # fmt: skip
        assert not replace(kept, **broken).is_within, broken
        assert "NOT held" in replace(kept, **broken).text()


def test_a_broken_promise_about_a_hang_is_noticed():
    said = Stored("1", "source_stuck", f"in {CALL}", {"call": f"{CALL} gpu 0"}, "n")
    process = Process(7, 1, is_zombie=False)
    kept = Hang(
        60.0, [Turns("host", 2.0, 0.0, during_seconds=2.1)], line_seconds=[0.1], finding=said, recovered=said,
        before=[process], after=[process],
    )  # fmt: skip
    assert kept.is_within
    late = [Turns("host", 2.0, 0.0, during_seconds=5.0)]
    for broken in (
        {"turns": late}, {"line_seconds": [float("inf")]}, {"finding": None}, {"recovered": None}, {"left": [process]},
        {"left_at_end": [process]}, {"after": []}, {"finding": replace(said, fields={"call": "another"})},
    ):  # fmt: skip
        assert not replace(kept, **broken).is_within, broken
        assert "NOT held" in replace(kept, **broken).text()


def test_a_turn_is_known_by_the_time_that_it_took():
    turns = Turns("host", 2.0, 100.0)
    for now_seconds, took_seconds in ((100.5, 0.1), (102.5, 0.1), (103.0, 0.2), (104.0, 0.3)):
        turns.look(took_seconds, now_seconds, is_hanging=False)
    assert (turns.before_seconds, turns.during_seconds) == (2.5, 0.0)


def test_a_hole_is_what_a_later_frame_of_the_same_agent_shows():
    assert missing_between([(0, 1), (0, 3), (1, 1)]) == {(0, 2)}
    old, new = Acknowledged(0, 1, True, 9), Acknowledged(0, 3, True, 9)
    assert is_oldest_first({(0, 2)}, [new])
    assert is_oldest_first({(0, 2)}, [old, new]), "it was on its way"
    older = replace(old, sequence=2)
    assert not is_oldest_first({(0, 3)}, [old, older, new])
    assert is_oldest_first({(0, 3)}, [replace(old, has_samples=False), older, new]), "its events were kept"


def test_every_injected_fault_is_another_one(node):
    kinds = [inject(node, number) for number in (10, 11, 12)]
    assert len(set(kinds)) == 3
    assert times_kept([Stored("1", kinds[0][0], f"x {kinds[0][1]}", {}, "n")], *kinds[0]) == 1
