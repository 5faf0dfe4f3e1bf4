"""Drills laid over readings: which files count, what they change, when they end."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.drills import Change, Drill, Drills, Mark, Said
from instep_agent.node import Fact
from instep_agent.turn import Turn
from instep_agent.wire import Sample
from made_nodes import Clock, node_at

HOT = Change(metric="t", labels={"gpu": "1"}, set=95.0)


class Drilled:
    def __init__(self, folder):
        self.clock = Clock()
        self.folder = folder / "drills"
        self.node = node_at(folder, self.clock)
        self.drills = Drills(self.folder)

    def write(self, name="one", *, mode=0o644, node="node-a", boot_id="", seconds=60.0, **pieces):
        until_ns = self.clock.monotonic_ns() + int(seconds * 1e9)
        drill = Drill(fault="thermal", node=node, boot_id=boot_id, until_monotonic_ns=until_ns, **pieces)
        return self.write_bytes(msgspec.json.encode(drill), name, mode)

    def write_bytes(self, data, name="one", mode=0o644):
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.json"
        path.write_bytes(data)
        path.chmod(mode)
        return path

    def look(self):
        self.clock.seconds += 1.5
        return self.drills.look(self.node)

    def values(self):
        turn = Turn(source="s", samples=tuple(Sample(name="t", labels=(("gpu", gpu),), value=40.0) for gpu in "01"))
        return {each.labels: each.value for each in self.drills.overlay(turn).samples}


HEALTHY = {(("gpu", "0"),): 40.0, (("gpu", "1"),): 40.0}
DRILLED = {(("gpu", "0"),): 40.0, (("drill", "true"), ("gpu", "1")): 95.0}


@pytest.fixture
def it(tmp_path):
    return Drilled(tmp_path)


def test_without_a_folder_there_is_no_drill(it):
    assert (it.look(), it.drills.is_active, it.values()) == ([], False, HEALTHY)


def test_a_drill_changes_what_fits_and_ends_by_its_own_time(it):
    it.write(changes=(HOT,), said=(Said(kind="hot", text="It is hot."),), seconds=5.0)
    assert [(fact.kind, fact.is_drill) for fact in it.look()] == [("drill_began", True), ("hot", True)]
    assert it.values() == DRILLED
    assert it.look() == []
    it.clock.seconds += 5.0
    (ended,) = it.look()
    assert (ended.kind, ended.is_drill, ended.fields["readings"]) == ("drill_ended", True, "1")
    assert it.values() == HEALTHY


def test_a_drill_that_is_taken_back_ends(it):
    path = it.write(changes=(HOT,))
    it.look()
    path.unlink()
    assert [fact.kind for fact in it.look()] == ["drill_ended"]
    assert it.values() == HEALTHY


def test_a_change_without_a_value_marks_what_is_there(it):
    it.write(changes=(Change(metric="t", labels={"gpu": "1"}),))
    it.look()
    assert it.values() == {(("gpu", "0"),): 40.0, (("drill", "true"), ("gpu", "1")): 40.0}


def test_a_fact_that_comes_of_a_drill_is_marked_and_another_is_not(it):
    it.write(marks=(Mark(kind="gpu_event", fields={"pci": "a"}),))
    it.look()
    facts = tuple(Fact("gpu_event", "text", 0, 0, {"pci": pci, "code": "79"}) for pci in "ab")
    assert [fact.is_drill for fact in it.drills.overlay(Turn(source="s", facts=facts)).facts] == [True, False]


@pytest.mark.parametrize(
    "how",
    [{"mode": 0o666}, {"mode": 0o664}, {"node": "node-b"}, {"boot_id": "another"}, {"seconds": -1.0}],
    ids=["everybody may write it", "a group may", "another node's", "of another boot", "over"],
)
def test_a_file_that_is_not_for_this_agent_now_changes_nothing(it, how):
    it.write(changes=(HOT,), **how)
    assert (it.look(), it.values()) == ([], HEALTHY)


def test_a_link_is_not_followed(it, tmp_path):
    path = it.write(changes=(HOT,))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert (it.look(), it.values()) == ([], HEALTHY)


@given(data=st.binary(max_size=200))
def test_whatever_is_in_a_file_the_agent_goes_on(tmp_path_factory, data):
    it = Drilled(tmp_path_factory.mktemp("node"))
    it.write_bytes(data)
    assert (it.look(), it.values()) == ([], HEALTHY)


def test_a_file_that_is_no_drill_is_told_once(it, caplog):
    it.write_bytes(b'{"fault": 3}')
    it.look()
    it.look()
    assert [record.message.count("is not carried out") for record in caplog.records] == [1]
