"""GPU state, identity and recovery action, and what every source owes to a driver that fails."""

import pytest
from instep_agent.sources.gpu_state import CALM_SECONDS
from nvml_peer import Peer
from nvml_scenario import GIB, field, pci, uuid

ALL = [str(gpu) for gpu in range(8)]
VALUES = {
    "instep_gpu_utilization_ratio": ("utilization 50", 0.5),
    "instep_gpu_memory_utilization_ratio": ("utilization_memory 25", 0.25),
    "instep_gpu_memory_used_bytes": ("memory_used 4096", 4096),
    "instep_gpu_memory_reserved_bytes": ("memory_reserved 8192", 8192),
    "instep_gpu_temperature_celsius": ("temperature 92", 92),
    "instep_gpu_temperature_margin_celsius": ("temperature_margin -3", -3),
    "instep_gpu_power_watts": ("power 123456", 123.456),
    "instep_gpu_power_instant_watts": (f"field.{field('POWER_INSTANT')} u:99500", 99.5),
    "instep_gpu_memory_temperature_celsius": (f"field.{field('MEMORY_TEMP')} u:95", 95),
    "instep_gpu_energy_joules_total": (f"field.{field('TOTAL_ENERGY_CONSUMPTION')} 1500", 1.5),
    "instep_gpu_power_limited_seconds_total": (f"field.{field('PERF_POLICY_POWER')} 2500000000", 2.5),
    "instep_gpu_thermally_limited_seconds_total": (f"field.{field('PERF_POLICY_THERMAL')} 500000000", 0.5),
    "instep_gpu_sm_clock_hertz": ("clock.1 210", 210e6),
    "instep_gpu_memory_clock_hertz": ("clock.2 1593", 1593e6),
    "instep_gpu_clock_reasons_mask": ("clock_reasons 104", 104),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_changed_value_shows_on_its_gpu_and_on_no_other(peer, scenario, name):
    before = peer.collect("gpu_state").values(name)
    line, value = VALUES[name]
    scenario.add(f"3.{line}")
    after = peer.collect("gpu_state").values(name)
    assert after == before | {"3": pytest.approx(value)}
    assert sorted(after) == ALL
    assert before["3"] != after["3"]


FUNCTIONS = {
    "instep_gpu_temperature_celsius": "temperature",
    "instep_gpu_power_watts": "power",
    "instep_gpu_utilization_ratio": "utilization",
    "instep_gpu_sm_clock_hertz": "clock.1",
    "instep_gpu_clock_reasons_mask": "clock_reasons",
    "instep_gpu_power_instant_watts": f"field.{field('POWER_INSTANT')}",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_that_a_gpu_does_not_have_is_absent_and_the_rest_is_there(peer, scenario, name):
    everything = peer.collect("gpu_state").names(5)
    peer.ask(do="reset")
    scenario.add(f"5.{FUNCTIONS[name]} !3")
    answer = peer.collect("gpu_state")
    assert sorted(answer.values(name)) == [gpu for gpu in ALL if gpu != "5"]
    missing = {name} | {"instep_gpu_clock_reason" if "reasons" in name else name}
    missing |= {"instep_gpu_memory_utilization_ratio"} if "utilization" in name else set()
    assert everything - answer.names(5) == missing
    assert answer["facts"] == []
    assert answer.values("instep_gpu_read_errors_total") == {}


@pytest.mark.parametrize("blank", ["4294967295", "2147483632", "2147483647"])
def test_a_blank_number_is_never_published(peer, scenario, blank):
    scenario.add(f"*.temperature {blank}", f"*.power {blank}", "*.clock.1 " + blank, "*.utilization " + blank)
    answer = peer.collect("gpu_state")
    for name in ("temperature_celsius", "power_watts", "sm_clock_hertz", "utilization_ratio"):
        assert answer.values(f"instep_gpu_{name}") == {}
    assert sorted(answer.values("instep_gpu_memory_clock_hertz")) == ALL


@pytest.mark.parametrize("blank", ["u:4294967295", "9223372036854775794", "18446744073709551615", "i:2147483632",
                                   "140737488355328.0", "nan.0"])  # fmt: skip
def test_a_blank_field_value_is_never_published(peer, scenario, blank):
    scenario.add(f"2.field.{field('TOTAL_ENERGY_CONSUMPTION')} {blank}")
    energy = peer.collect("gpu_state").values("instep_gpu_energy_joules_total")
    assert sorted(energy) == [gpu for gpu in ALL if gpu != "2"]


def test_what_is_not_supported_is_asked_for_again_only_after_ten_minutes(peer, scenario):
    scenario.add("0.power !3", f"0.field.{field('MEMORY_TEMP')} !3")
    asked = "nvmlDeviceGetPowerUsage gpu 0"
    assert asked in peer.collect("gpu_state")["calls"]
    scenario.healthy()
    answer = peer.collect("gpu_state", later_seconds=590)
    assert asked not in answer["calls"]
    assert "0" not in answer.values("instep_gpu_memory_temperature_celsius")
    answer = peer.collect("gpu_state", later_seconds=20)
    assert answer.values("instep_gpu_power_watts")["0"] == 650.0
    assert answer.values("instep_gpu_memory_temperature_celsius")["0"] == 52.0


def test_an_error_is_counted_and_asked_again_at_once(peer, scenario):
    scenario.add("4.power !999")
    for count in (1, 2):
        answer = peer.collect("gpu_state")
        assert answer.values("instep_gpu_read_errors_total", error="unknown") == {"4": count}
        assert "4" not in answer.values("instep_gpu_power_watts")
    scenario.healthy()
    assert peer.collect("gpu_state").values("instep_gpu_power_watts")["4"] == 650.0


def test_a_refused_value_is_counted_as_refused(peer, scenario):
    scenario.add("1.power !4")
    answer = peer.collect("gpu_state")
    assert answer.values("instep_gpu_read_errors_total", error="no_permission") == {"1": 1}
    assert sorted(answer.values("instep_gpu_temperature_celsius")) == ALL


def test_with_instances_on_there_is_no_utilisation(peer, scenario):
    scenario.add("6.mig 1", "6.utilization !3")
    answer = peer.collect("gpu_state")
    assert "6" not in answer.values("instep_gpu_utilization_ratio")
    assert peer.collect("gpu_identity").values("instep_gpu_mig_is_enabled") == dict.fromkeys(ALL, 0) | {"6": 1}


def test_a_split_that_waits_for_a_reset_is_told_apart_from_one_that_is_there(peer, scenario):
    scenario.add("5.mig_pending 1", "7.mig !3")
    answer = peer.collect("gpu_identity")
    assert answer.values("instep_gpu_mig_pending_is_enabled") == dict.fromkeys(ALL[:7], 0) | {"5": 1}
    assert answer.values("instep_gpu_mig_is_enabled") == dict.fromkeys(ALL[:7], 0)


def test_the_persistence_mode_is_told_where_a_gpu_has_one(peer, scenario):
    scenario.add("2.persistence_mode 0", "3.persistence_mode !3")
    modes = dict.fromkeys(ALL, 1) | {"2": 0}
    modes.pop("3")
    assert peer.collect("gpu_identity").values("instep_gpu_persistence_mode_is_enabled") == modes


def test_an_older_driver_gives_memory_in_its_first_form(peer, scenario):
    scenario.add("*.memory_v2 !13")
    answer = peer.collect("gpu_state")
    assert answer.values("instep_gpu_memory_reserved_bytes") == {}
    assert answer.values("instep_gpu_memory_used_bytes")["0"] == 71 * GIB
    assert answer.values("instep_gpu_memory_free_bytes")["0"] == 9 * GIB


def test_every_active_clock_reason_has_its_own_series(peer, scenario):
    scenario.add("0.clock_reasons 0x48")
    answer = peer.collect("gpu_state")
    active = {dict(labels)["reason"] for name, labels, value in answer["samples"]
              if name == "instep_gpu_clock_reason" and value and dict(labels)["gpu"] == "0"}  # fmt: skip
    assert active == {"hardware_slowdown", "hardware_thermal"}
    scenario.add("0.clock_reasons 0x1")
    assert peer.collect("gpu_state").values("instep_gpu_clock_reason", reason="gpu_idle")["0"] == 1


def test_gpus_are_looked_at_more_rarely_while_nothing_changes_in_what_holds_their_clocks(peer, scenario):
    def rests():
        return peer.collect("gpu_state", later_seconds=1)["rest_seconds"]

    assert (rests(), rests(), rests()) == (0.0, CALM_SECONDS, CALM_SECONDS)
    scenario.add("0.clock_reasons 0x48")
    assert (rests(), rests()) == (0.0, CALM_SECONDS)
    scenario.add("3.lost 1")
    assert (rests(), rests()) == (0.0, 0.0), "one that is lost is looked for"


def test_a_lost_gpu_is_one_fact_and_the_others_go_on(peer, scenario):
    assert peer.collect("gpu_state")["facts"] == []
    scenario.add("3.lost 1")
    answer = peer.collect("gpu_state", later_seconds=1)
    (fact,) = answer["facts"]
    assert fact["kind"] == "gpu_lost"
    assert fact["text"] == f"GPU 3 ({pci(3)}) cannot be read (gpu is lost)."
    assert fact["fields"] == {"gpu": "3", "uuid": uuid(3), "pci": pci(3), "error": "gpu_is_lost"}
    assert answer.values("instep_gpu_is_lost") == dict.fromkeys(ALL, 0) | {"3": 1}
    assert sorted(answer.values("instep_gpu_power_watts")) == [gpu for gpu in ALL if gpu != "3"]
    for source in ("gpu_state", "gpu_memory_health", "gpu_links", "gpu_pcie", "gpu_state"):
        later = peer.collect(source, later_seconds=1)
        assert later["facts"] == []
        assert not [call for call in later["calls"] if call.endswith("gpu 3")]
        assert later.names(3) <= {"instep_gpu_is_lost"}


def test_a_lost_gpu_is_looked_for_again_ever_more_rarely(peer, scenario):
    scenario.add("3.lost 1")
    peer.collect("gpu_state")
    opened = []
    for second in range(0, 1000, 10):
        answer = peer.collect("gpu_state", later_seconds=10)
        assert answer["facts"] == []
        assert answer.values("instep_gpu_is_lost")["3"] == 1
        if "nvmlInit" in answer["calls"]:
            opened.append(second + 10)
    assert opened == [120, 360, 840]


def test_the_return_of_a_lost_gpu_is_a_fact(peer, scenario):
    scenario.add("3.lost 1")
    peer.collect("gpu_state")
    scenario.healthy()
    assert peer.collect("gpu_state", later_seconds=119)["facts"] == []
    answer = peer.collect("gpu_state", later_seconds=1)
    assert [(fact["kind"], fact["fields"]["uuid"]) for fact in answer["facts"]] == [("gpu_back", uuid(3))]
    assert answer.values("instep_gpu_is_lost") == dict.fromkeys(ALL, 0)
    assert answer.values("instep_gpu_power_watts")["3"] == 650.0


def test_a_gpu_that_is_lost_a_second_time_is_a_second_fact_and_looked_for_as_soon_as_the_first_time(peer, scenario):
    scenario.add("3.lost 1")
    peer.collect("gpu_state")
    assert "nvmlInit" in peer.collect("gpu_state", later_seconds=120)["calls"]
    scenario.healthy()
    assert [fact["kind"] for fact in peer.collect("gpu_state", later_seconds=240)["facts"]] == ["gpu_back"]
    peer.collect("gpu_state", later_seconds=1)
    scenario.add("3.lost 1")
    assert [fact["kind"] for fact in peer.collect("gpu_state")["facts"]] == ["gpu_lost"]
    assert "nvmlInit" in peer.collect("gpu_state", later_seconds=120)["calls"]


def test_a_gpu_that_was_lost_before_the_agent_began_is_a_fact_too(peer, scenario):
    scenario.add("3.lost 1")
    (fact,) = peer.collect("gpu_recovery")["facts"]
    assert fact["fields"] == {"gpu": "3", "uuid": "", "pci": "", "error": "gpu_is_lost"}


def test_a_gpu_that_the_driver_lists_no_more_is_lost(peer, scenario):
    scenario.add("3.lost 1")
    peer.collect("gpu_state")
    scenario.healthy(gpus=7)
    answer = peer.collect("gpu_state", later_seconds=121)
    by_kind = {fact["kind"]: fact["fields"]["gpu"] for fact in answer["facts"]}
    assert by_kind == {"gpu_back": "3", "gpu_lost": "7"}
    assert answer.values("instep_gpu_is_lost")["7"] == 1


def test_a_driver_that_is_taken_away_fails_the_turn_and_is_opened_again(peer, scenario):
    peer.collect("gpu_state")
    scenario.add("2.power !1")
    assert "taken away or exchanged" in peer.collect("gpu_state")["failed"]
    scenario.healthy()
    answer = peer.collect("gpu_state")
    assert answer["calls"][0] == "nvmlInit"
    assert sorted(answer.values("instep_gpu_power_watts")) == ALL


REFUSALS = {
    9: "load it (modprobe nvidia)",
    18: "different versions",
    4: "permission denied",
    999: "look at the kernel log",
}


@pytest.mark.parametrize("error", REFUSALS)
def test_a_driver_that_cannot_be_opened_fails_with_one_sentence(peer, scenario, error):
    scenario.add(f"init !{error}")
    answer = peer.collect("gpu_state")
    assert REFUSALS[error] in answer["failed"]
    assert answer["failed"].startswith("Cannot open the NVIDIA driver (NVML), ")
    assert answer["failed"].count(". ") == 0
    assert peer.collect("gpu_links", later_seconds=1)["calls"] == []
    scenario.healthy()
    assert "failed" not in peer.collect("gpu_state", later_seconds=15)


def test_no_library_is_absent_hardware(tmp_path):
    with Peer(tmp_path, tmp_path / "none") as peer:
        answer = peer.collect("gpu_state")
    if "failed" in answer or answer["samples"]:
        pytest.skip("This machine has an NVIDIA driver of its own.")
    assert answer["absent"] == "libnvidia-ml.so.1 is not there: no NVIDIA driver is installed."


def test_a_driver_without_gpus_is_absent_hardware(peer, scenario):
    scenario.write(["gpus 0"])
    assert peer.collect("gpu_state")["absent"] == "NVML lists no GPU on this node."


def test_a_call_that_never_returns_was_announced_before_it_began(nvml_library, tmp_path):
    from nvml_scenario import Scenario

    scenario = Scenario(tmp_path / "scenario.txt")
    scenario.healthy(2)
    with Peer(nvml_library, scenario.path) as peer:
        peer.collect("gpu_state")
        scenario.add("1.hang nvmlDeviceGetPowerUsage")
        peer.order(do="collect", source="gpu_state")
        assert not peer.has_answer(0.3)
        scenario.remove("1.hang nvmlDeviceGetPowerUsage")
        calls = peer.answer()["calls"]
        assert "nvmlDeviceGetPowerUsage gpu 1" in calls
        scenario.add("*.hang nvmlDeviceGetTemperature")
        peer.order(do="collect", source="gpu_state")
        assert not peer.has_answer(0.3)
        peer.process.kill()
        assert peer.process.wait(10) == -9


def test_identity_says_who_a_gpu_is_and_asks_only_once(peer, scenario):
    answer = peer.collect("gpu_identity")
    infos = [dict(labels) for name, labels, value in answer["samples"] if name == "instep_gpu_info"]
    assert infos[2] == {
        "gpu": "2",
        "uuid": uuid(2),
        "pci": pci(2),
        "model": "NVIDIA H100 80GB HBM3",
        "board": "692-2G520-0200-000",
        "serial": "1653024000002",
        "vbios": "96.00.89.00.01",
        "minor": "2",
    }
    (driver,) = [dict(labels) for name, labels, value in answer["samples"] if name == "instep_gpu_driver_info"]
    assert driver == {"driver": "575.57.08", "nvml": "13.575.57.08", "cuda": "12.9"}
    again = peer.collect("gpu_identity", later_seconds=60)
    assert again["samples"] == answer["samples"]
    assert {call.split()[0] for call in again["calls"]} == {
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetPersistenceMode",
        "nvmlDeviceGetMigMode",
    }


def test_a_metric_with_another_exporters_name_has_what_that_exporters_labels_hold(peer):
    samples = peer.collect("gpu_state")["samples"]
    by_name = {name: dict(labels) for name, labels, _ in reversed(samples)}
    few = {"gpu": "0", "uuid": uuid(0)}
    assert by_name["instep_gpu_power_watts"] == few | {"pci": pci(0), "model": "NVIDIA H100 80GB HBM3"}
    assert by_name["instep_gpu_power_instant_watts"] == few


def test_the_recovery_action_is_the_drivers_own_number(peer, scenario):
    assert peer.collect("gpu_recovery").values("instep_gpu_recovery_action") == dict.fromkeys(ALL, 0)
    scenario.add(f"5.field.{field('GET_GPU_RECOVERY_ACTION')} u:4")
    assert peer.collect("gpu_recovery").values("instep_gpu_recovery_action")["5"] == 4


def test_a_change_of_the_recovery_action_is_told_once(peer, scenario):
    assert peer.collect("gpu_recovery")["facts"] == [], "no action is the healthy state"
    scenario.add(f"5.field.{field('GET_GPU_RECOVERY_ACTION')} u:2")
    (fact,) = peer.collect("gpu_recovery")["facts"]
    assert (fact["kind"], fact["fields"]) == (
        "gpu_recovery",
        {"gpu": "5", "uuid": uuid(5), "pci": pci(5), "action": "2"},
    )
    assert peer.collect("gpu_recovery")["facts"] == []
    scenario.add(f"5.field.{field('GET_GPU_RECOVERY_ACTION')} u:0")
    (over,) = peer.collect("gpu_recovery")["facts"]
    assert over["fields"]["action"] == "0"


def test_an_action_that_stood_at_the_first_look_is_told_as_standing_and_its_end_as_a_change(peer, scenario):
    scenario.add(f"5.field.{field('GET_GPU_RECOVERY_ACTION')} u:2")
    (fact,) = peer.collect("gpu_recovery")["facts"]
    assert fact["fields"] == {"gpu": "5", "uuid": uuid(5), "pci": pci(5), "action": "2", "is_standing": "true"}
    assert fact["text"] == f"GPU 5 ({pci(5)}) asks for recovery action 2, and did so already at the agent's first look."
    for action in (0, 2):
        scenario.add(f"5.field.{field('GET_GPU_RECOVERY_ACTION')} u:{action}")
        (change,) = peer.collect("gpu_recovery")["facts"]
        assert (change["fields"]["action"], "is_standing" in change["fields"]) == (str(action), False)


def test_an_action_that_a_new_process_of_an_old_agent_finds_is_told_as_a_change(peer, scenario):
    scenario.add(f"5.field.{field('GET_GPU_RECOVERY_ACTION')} u:1")
    (fact,) = peer.collect("gpu_recovery", later_seconds=60)["facts"]
    assert (fact["fields"]["action"], "is_standing" in fact["fields"]) == ("1", False)


def test_an_older_driver_has_no_recovery_action(peer, scenario):
    scenario.add(f"*.field.{field('GET_GPU_RECOVERY_ACTION')} !3")
    answer = peer.collect("gpu_recovery")
    assert answer["samples"] == answer["facts"] == []
