"""Events of GPUs: at once, each counted, none from before, and none that the GPU cannot tell."""

from nvml_scenario import CLOCK, ECC_CORRECTED, POWER_SOURCE, XID, pci, uuid

WAIT_SECONDS = 1.0


def test_an_xid_is_a_fact_with_what_joins_it_to_the_kernel_log(peer, scenario):
    assert peer.collect("gpu_events")["facts"] == []
    scenario.event(3, 79)
    (fact,) = peer.collect("gpu_events", later_seconds=2)["facts"]
    assert fact["kind"] == "gpu_event"
    assert fact["text"] == f"GPU 3 ({pci(3)}) reported Xid 79."
    assert fact["fields"] == {"type": "xid", "code": "79", "gpu": "3", "uuid": uuid(3), "pci": pci(3)}
    assert fact["monotonic_ns"] > 10**12
    assert peer.collect("gpu_events")["facts"] == []


def test_whoever_watches_hears_of_it_while_waiting(peer, scenario):
    peer.collect("gpu_events")
    peer.order(do="watch", source="gpu_events", seconds=WAIT_SECONDS)
    scenario.event(1, 94)
    (fact,) = peer.answer()["facts"]
    assert fact["fields"]["code"] == "94"


def test_watching_ends_without_an_event_too(peer):
    peer.collect("gpu_events")
    assert peer.ask(do="watch", source="gpu_events", seconds=0.05)["facts"] == []


def test_watching_before_the_first_turn_gives_nothing(peer):
    assert peer.ask(do="watch", source="gpu_events", seconds=WAIT_SECONDS)["facts"] == []


def test_every_xid_of_a_burst_is_told_in_order(peer, scenario):
    peer.collect("gpu_events")
    for gpu, code in ((0, 48), (0, 63), (0, 48), (5, 45)):
        scenario.event(gpu, code)
    answer = peer.collect("gpu_events")
    told = [(fact["fields"]["gpu"], fact["fields"]["code"]) for fact in answer["facts"]]
    assert told == [("0", "48"), ("0", "63"), ("0", "48"), ("5", "45")]
    assert answer.values("instep_gpu_events_total", type="xid")["0"] == 3
    assert answer.values("instep_gpu_events_total", type="xid")["1"] == 0


def test_what_happened_before_the_agent_began_is_not_told(peer, scenario):
    scenario.event(2, 31)
    assert peer.collect("gpu_events")["facts"] == []
    scenario.event(2, 13)
    assert [fact["fields"]["code"] for fact in peer.collect("gpu_events")["facts"]] == ["13"]


def test_an_event_that_says_only_that_it_happened_is_sent_once_a_minute_and_counted(peer, scenario):
    peer.collect("gpu_events")
    for _ in range(50):
        scenario.event(4, 0, ECC_CORRECTED)
    answer = peer.collect("gpu_events")
    assert [fact["text"] for fact in answer["facts"]] == [f"GPU 4 ({pci(4)}) reported ecc corrected."]
    assert "code" not in answer["facts"][0]["fields"]
    assert answer.values("instep_gpu_events_total", type="ecc_corrected")["4"] == 50
    scenario.event(4, 0, ECC_CORRECTED)
    assert peer.collect("gpu_events", later_seconds=59)["facts"] == []
    scenario.event(4, 0, ECC_CORRECTED)
    assert len(peer.collect("gpu_events", later_seconds=2)["facts"]) == 1


def test_a_flood_does_not_hold_a_turn_up_for_ever(peer, scenario):
    peer.collect("gpu_events")
    scenario.add(*[f"event {100000 + number} 0 13 {XID}" for number in range(250)])
    assert len(peer.collect("gpu_events")["facts"]) == 200
    assert len(peer.collect("gpu_events")["facts"]) == 50


def test_types_that_a_gpu_does_not_have_are_masked_out(peer, scenario):
    scenario.add(f"2.event_types {XID}")
    answer = peer.collect("gpu_events")
    types = {dict(labels)["type"] for _, labels, _ in answer["samples"] if dict(labels)["gpu"] == "2"}
    assert types == {"xid"}
    assert answer.values("instep_gpu_events_total", type="power_source")["1"] == 0
    scenario.event(2, 0, POWER_SOURCE)
    scenario.event(1, 0, POWER_SOURCE)
    assert [fact["fields"]["gpu"] for fact in peer.collect("gpu_events")["facts"]] == ["1"]


def test_changes_of_clocks_are_no_events(peer, scenario):
    peer.collect("gpu_events")
    scenario.event(0, 0, CLOCK)
    answer = peer.collect("gpu_events")
    assert answer["facts"] == []
    assert answer.values("instep_gpu_events_total", type="clock") == {}


def test_a_gpu_without_events_leaves_those_of_the_others(peer, scenario):
    scenario.add("0.event_types !3")
    peer.collect("gpu_events")
    scenario.event(1, 31)
    assert len(peer.collect("gpu_events")["facts"]) == 1


def test_a_set_that_a_lost_gpu_spoilt_is_made_anew_without_that_gpu(peer, scenario):
    peer.collect("gpu_events")
    scenario.event(6, 31)
    assert peer.collect("gpu_events").values("instep_gpu_events_total", type="xid")["6"] == 1
    scenario.add("event_wait !15", "3.lost 1")
    assert "failed" not in peer.collect("gpu_events")
    scenario.remove("event_wait !15")
    peer.collect("gpu_state")
    peer.collect("gpu_events")
    scenario.event(6, 79)
    answer = peer.collect("gpu_events")
    assert [fact["fields"]["code"] for fact in answer["facts"]] == ["79"]
    assert answer.values("instep_gpu_events_total", type="xid")["6"] == 2, "counts go on"


def test_after_the_driver_was_opened_again_events_come_from_the_new_one(peer, scenario):
    peer.collect("gpu_events")
    scenario.add("0.power !1")
    peer.collect("gpu_state")
    scenario.healthy()
    peer.collect("gpu_events")
    scenario.event(7, 119)
    assert [fact["fields"]["code"] for fact in peer.collect("gpu_events")["facts"]] == ["119"]
