"""Memory health, PCIe, NVLink, fabric, performance counters and processes of every GPU."""

import contextlib
import os

import pytest
from made_records import new_writer
from nvml_scenario import GIB, field

ALL = [str(gpu) for gpu in range(8)]
MEMORY = {
    "instep_gpu_ecc_corrected_volatile_total": "ECC_SBE_VOL_TOTAL",
    "instep_gpu_ecc_uncorrected_volatile_total": "ECC_DBE_VOL_TOTAL",
    "instep_gpu_ecc_corrected_aggregate_total": "ECC_SBE_AGG_TOTAL",
    "instep_gpu_ecc_uncorrected_aggregate_total": "ECC_DBE_AGG_TOTAL",
    "instep_gpu_ecc_device_memory_corrected_volatile_total": "ECC_SBE_VOL_DEV",
    "instep_gpu_ecc_device_memory_uncorrected_volatile_total": "ECC_DBE_VOL_DEV",
    "instep_gpu_remapped_rows_corrected": "REMAPPED_COR",
    "instep_gpu_remapped_rows_uncorrected": "REMAPPED_UNC",
    "instep_gpu_row_remap_is_pending": "REMAPPED_PENDING",
    "instep_gpu_row_remap_has_failed": "REMAPPED_FAILURE",
}
PCIE = {
    "instep_gpu_pcie_replays_total": "PCIE_REPLAY_COUNTER",
    "instep_gpu_pcie_replay_rollovers_total": "PCIE_REPLAY_ROLLOVER_COUNTER",
    "instep_gpu_pcie_recoveries_total": "PCIE_L0_TO_RECOVERY_COUNTER",
    "instep_gpu_pcie_correctable_errors_total": "PCIE_COUNT_CORRECTABLE_ERRORS",
    "instep_gpu_pcie_nonfatal_errors_total": "PCIE_COUNT_NON_FATAL_ERROR",
    "instep_gpu_pcie_fatal_errors_total": "PCIE_COUNT_FATAL_ERROR",
    "instep_gpu_pcie_receiver_errors_total": "PCIE_COUNT_RECEIVER_ERROR",
    "instep_gpu_pcie_bad_tlps_total": "PCIE_COUNT_BAD_TLP",
    "instep_gpu_pcie_bad_dllps_total": "PCIE_COUNT_BAD_DLLP",
    "instep_gpu_pcie_naks_sent_total": "PCIE_COUNT_NAKS_SENT",
    "instep_gpu_pcie_naks_received_total": "PCIE_COUNT_NAKS_RECEIVED",
    "instep_gpu_pcie_transmit_bytes_total": "PCIE_COUNT_TX_BYTES",
    "instep_gpu_pcie_receive_bytes_total": "PCIE_COUNT_RX_BYTES",
}
COUNTERS = [("gpu_memory_health", *each) for each in MEMORY.items()] + [("gpu_pcie", *each) for each in PCIE.items()]


@pytest.mark.parametrize(("source", "name", "constant"), COUNTERS)
def test_a_count_is_the_drivers_own_and_absent_where_it_has_none(peer, scenario, source, name, constant):
    healthy = peer.collect(source).values(name)
    assert sorted(healthy) == ALL
    scenario.add(f"1.field.{field(constant)} 4242", f"2.field.{field(constant)} !999")
    del healthy["2"]
    assert peer.collect(source).values(name) == healthy | {"1": 4242}


def test_a_count_that_falls_is_published_as_it_is(peer, scenario):
    """The agent adds nothing up: a smaller value after the driver was loaded again is a new beginning."""
    name, number = "instep_gpu_ecc_corrected_volatile_total", field("ECC_SBE_VOL_TOTAL")
    scenario.add(f"0.field.{number} 900")
    assert peer.collect("gpu_memory_health").values(name)["0"] == 900
    scenario.add(f"0.field.{number} 3")
    assert peer.collect("gpu_memory_health").values(name)["0"] == 3


def test_retired_pages_are_there_on_gpus_that_retire_pages_only(peer, scenario):
    assert peer.collect("gpu_memory_health").values("instep_gpu_retired_pages_corrected") == {}
    peer.ask(do="reset")
    scenario.add("*.field.29 u:2", "*.field.30 u:1", "*.field.31 u:1", "*.remap_banks.max !3")
    answer = peer.collect("gpu_memory_health")
    assert answer.values("instep_gpu_retired_pages_corrected")["7"] == 2
    assert answer.values("instep_gpu_retired_pages_uncorrected")["7"] == 1
    assert answer.values("instep_gpu_page_retirement_is_pending")["7"] == 1
    assert answer.values("instep_gpu_remap_banks") == {}


def test_banks_are_told_by_their_spare_rows(peer, scenario):
    scenario.add("4.remap_banks.none 1")
    answer = peer.collect("gpu_memory_health")
    assert answer.values("instep_gpu_remap_banks", spare="none") == dict.fromkeys(ALL, 0) | {"4": 1}
    assert answer.values("instep_gpu_remap_banks", spare="max") == dict.fromkeys(ALL, 2559)


SRAM = [(kind, period) for kind in ("parity", "secded", "corrected") for period in ("volatile", "aggregate")]


@pytest.mark.parametrize(("kind", "period"), SRAM)
def test_errors_on_the_chip_are_told_by_kind_and_period(peer, scenario, kind, period):
    scenario.add(f"5.sram_{kind}_{period} 77")
    answer = peer.collect("gpu_memory_health")
    assert answer.values("instep_gpu_sram_errors_total", kind=kind, period=period)["5"] == 77
    changed = [value for name, _, value in answer["samples"] if name == "instep_gpu_sram_errors_total" and value == 77]
    assert len(changed) == 1


def test_the_drivers_own_limit_of_chip_errors_shows(peer, scenario):
    name = "instep_gpu_sram_threshold_is_exceeded"
    assert peer.collect("gpu_memory_health").values(name) == dict.fromkeys(ALL, 0)
    scenario.add("6.sram_threshold_exceeded 1", "6.sram_bucket.sm 5")
    answer = peer.collect("gpu_memory_health")
    assert answer.values(name)["6"] == 1
    assert answer.values("instep_gpu_sram_uncorrected_aggregate_total", place="sm")["6"] == 5


def test_chip_errors_that_only_root_may_see_are_refused_and_the_rest_is_there(peer, scenario):
    scenario.add("*.sram_parity_aggregate !4")
    answer = peer.collect("gpu_memory_health")
    assert answer.values("instep_gpu_sram_errors_total") == {}
    assert sorted(answer.values("instep_gpu_ecc_uncorrected_volatile_total")) == ALL
    refused = peer.collect("gpu_state").values("instep_gpu_read_errors_total", error="no_permission")
    assert refused == dict.fromkeys(ALL, 1)


def test_a_narrower_pcie_link_shows_beside_what_it_could_be(peer, scenario):
    scenario.add("2.pcie_width 8", "2.pcie_generation 3")
    answer = peer.collect("gpu_pcie")
    assert answer.values("instep_gpu_pcie_width") == dict.fromkeys(ALL, 16) | {"2": 8}
    assert answer.values("instep_gpu_pcie_generation") == dict.fromkeys(ALL, 5) | {"2": 3}
    assert answer.values("instep_gpu_pcie_width_max")["2"] == 16
    assert answer.values("instep_gpu_pcie_generation_max")["2"] == 5
    assert not [call for call in peer.collect("gpu_pcie")["calls"] if "Max" in call], "read once"


def test_every_nvlink_has_its_series_and_its_gpu_the_sum_and_the_worst(peer, scenario):
    replay = field("NVLINK_ERROR_DL_REPLAY")
    scenario.add(f"3.field.{replay}.7 5", f"3.field.{replay}.9 2", f"3.field.{field('NVLINK_GET_STATE')}.7 u:0")
    answer = peer.collect("gpu_links")
    assert answer.values("instep_gpu_nvlink_link_errors_total", kind="replay", link="7")["3"] == 5
    assert answer.values("instep_gpu_nvlink_errors_total", kind="replay") == dict.fromkeys(ALL, 0) | {"3": 7}
    assert answer.values("instep_gpu_nvlink_link_errors_max", kind="replay") == dict.fromkeys(ALL, 0) | {"3": 5}
    assert answer.values("instep_gpu_nvlinks") == dict.fromkeys(ALL, 18)
    assert answer.values("instep_gpu_nvlinks_active") == dict.fromkeys(ALL, 18) | {"3": 17}
    assert answer.values("instep_gpu_nvlink_state", link="7")["3"] == 0


def test_a_sum_is_left_out_while_one_of_its_links_cannot_be_read(peer, scenario):
    crc = field("NVLINK_ERROR_DL_CRC")
    scenario.add(f"*.field.{crc} 10")
    assert peer.collect("gpu_links").values("instep_gpu_nvlink_errors_total", kind="crc")["0"] == 180
    scenario.add(f"0.field.{crc}.4 !999")
    answer = peer.collect("gpu_links")
    assert "0" not in answer.values("instep_gpu_nvlink_errors_total", kind="crc")
    assert answer.values("instep_gpu_nvlink_errors_total", kind="crc")["1"] == 180
    assert answer.values("instep_gpu_nvlink_link_errors_total", kind="crc", link="5")["0"] == 10


def test_newer_gpus_have_other_kinds_of_nvlink_errors(peer, scenario):
    scenario.add("*.field.161 !3", "*.field.162 !3", "*.field.163 !3")
    scenario.add("*.field.208 1", "*.field.214 0", "1.field.214.3 2")
    answer = peer.collect("gpu_links")
    kinds = {dict(labels)["kind"] for name, labels, _ in answer["samples"] if name == "instep_gpu_nvlink_errors_total"}
    assert kinds == {"receive", "link_recovery_failed"}
    assert answer.values("instep_gpu_nvlink_errors_total", kind="link_recovery_failed")["1"] == 2


def test_an_older_driver_tells_links_by_function(peer, scenario):
    scenario.add(*[f"*.field.{number} !3" for number in (161, 162, 163, 165)])
    scenario.add("*.nvlink_state 1", "*.nvlink_state.2 0", *[f"*.nvlink_errors.{kind} 0" for kind in range(5)])
    scenario.add("6.nvlink_errors.3.1 8")
    answer = peer.collect("gpu_links")
    assert answer.values("instep_gpu_nvlinks_active") == dict.fromkeys(ALL, 17)
    assert answer.values("instep_gpu_nvlink_errors_total", kind="crc_data") == dict.fromkeys(ALL, 0) | {"6": 8}


def test_a_gpu_without_nvlink_has_none_of_it(peer, scenario):
    scenario.add("*.field.91 !3", "*.fabric_state !3")
    answer = peer.collect("gpu_links")
    assert answer["samples"] == answer["facts"] == []


def test_bytes_over_nvlink_are_the_sum_over_all_links(peer, scenario):
    scenario.add("0.field.138.4294967295 5", "0.field.139.4294967295 6")
    answer = peer.collect("gpu_links")
    assert answer.values("instep_gpu_nvlink_transmit_bytes_total")["0"] == 5 * 1024
    assert answer.values("instep_gpu_nvlink_receive_bytes_total")["0"] == 6 * 1024


@pytest.mark.parametrize("form", ["", "*.fabric_v3 1"])
def test_the_fabric_is_told_in_whichever_form_the_driver_has(peer, scenario, form):
    scenario.add("4.fabric_health_mask 0x1a9", "4.fabric_clique 2", "4.fabric_status 999")
    scenario.add("*.fabric_health_summary 1", form)
    answer = peer.collect("gpu_links")
    assert answer.values("instep_gpu_fabric_state") == dict.fromkeys(ALL, 3)
    assert answer.values("instep_gpu_fabric_health_mask") == dict.fromkeys(ALL, 0x1AA) | {"4": 0x1A9}
    assert answer.values("instep_gpu_fabric_clique")["4"] == 2
    assert answer.values("instep_gpu_fabric_status")["4"] == 999


def test_a_fabric_that_is_not_joined_yet_has_a_state_and_nothing_more(peer, scenario):
    scenario.add("*.fabric_state 2", "0.fabric_state 0")
    answer = peer.collect("gpu_links")
    assert answer.values("instep_gpu_fabric_state") == {gpu: 2 for gpu in ALL if gpu != "0"}
    assert answer.values("instep_gpu_fabric_status") == answer.values("instep_gpu_fabric_health_mask") == {}


PERFORMANCE = {
    "instep_gpu_engine_active_ratio": (1, 0.985),
    "instep_gpu_sm_active_ratio": (2, 0.9125),
    "instep_gpu_sm_occupancy_ratio": (3, 0.4),
    "instep_gpu_tensor_active_ratio": (5, 0.625),
    "instep_gpu_dram_active_ratio": (10, 0.55),
    "instep_gpu_pcie_transmit_bytes_per_second": (20, 100 * 2**20),
    "instep_gpu_pcie_receive_bytes_per_second": (21, 200 * 2**20),
    "instep_gpu_nvlink_receive_bytes_per_second": (60, 30000 * 2**20),
    "instep_gpu_nvlink_transmit_bytes_per_second": (61, 31000 * 2**20),
}


def test_performance_is_the_mean_between_two_samples(peer):
    assert peer.collect("gpu_performance")["samples"] == [], "nothing to compare with yet"
    answer = peer.collect("gpu_performance", later_seconds=5)
    for name, (_, value) in PERFORMANCE.items():
        assert answer.values(name) == pytest.approx(dict.fromkeys(ALL, value))
    assert peer.collect("gpu_performance", later_seconds=5)["samples"] == answer["samples"]


@pytest.mark.parametrize("name", PERFORMANCE)
def test_a_performance_counter_that_fails_is_absent_alone(peer, scenario, name):
    scenario.add(f"2.gpm_metric.{PERFORMANCE[name][0]} !3", f"3.gpm_metric.{PERFORMANCE[name][0]} nan")
    peer.collect("gpu_performance")
    answer = peer.collect("gpu_performance")
    assert sorted(answer.values(name)) == [gpu for gpu in ALL if gpu not in "23"]
    assert answer.names(2) == PERFORMANCE.keys() - {name}


@pytest.mark.parametrize("line", ["1.gpm 0", "1.gpm !3", "1.mig 1"])
def test_a_gpu_without_performance_counters_is_absent_and_not_asked_again(peer, scenario, line):
    scenario.add(line)
    peer.collect("gpu_performance")
    answer = peer.collect("gpu_performance")
    assert answer.names(1) == set()
    assert answer.names(2) == PERFORMANCE.keys()
    assert not [call for call in answer["calls"] if call.endswith("gpu 1")]


def test_performance_begins_anew_after_a_sample_failed(peer, scenario):
    peer.collect("gpu_performance")
    scenario.add("0.gpm !999")
    assert peer.collect("gpu_performance").names(0) == set()
    scenario.healthy()
    assert peer.collect("gpu_performance").names(0) == set()
    assert peer.collect("gpu_performance").names(0) == PERFORMANCE.keys()


def test_processes_are_named_by_pid_with_their_memory(peer, scenario):
    scenario.add(f"0.process 4711 {2 * GIB}", "7.process 4712 18446744073709551615")
    answer = peer.collect("gpu_processes")
    assert answer.values("instep_gpu_processes") == dict.fromkeys(ALL, 1) | {"0": 2, "7": 2}
    assert answer.values("instep_gpu_process_memory_bytes", pid="4711") == {"0": 2 * GIB}
    assert answer.values("instep_gpu_process_memory_bytes", pid="1000") == {"0": 60 * GIB}
    assert answer.values("instep_gpu_process_memory_bytes", pid="4712") == {}, "the driver does not say how much"


MEMORY_OF_PROCESS = "instep_gpu_process_memory_bytes"


def test_a_process_that_is_a_rank_is_named_as_one_and_no_other_is(peer, scenario, tmp_path):
    me = str(os.getpid())
    with contextlib.closing(new_writer(tmp_path, rank=3, job="train", run="r-1", node="n1")):
        scenario.add(f"0.process {me} {2 * GIB}", f"0.process {os.getppid()} {GIB}")
        peer.ask(do="reset", record_root=str(tmp_path))
        answer = peer.collect("gpu_processes")
        assert peer.collect("gpu_processes")["samples"] == answer["samples"]
    assert answer.values(MEMORY_OF_PROCESS, pid=me, job="train", run="r-1", rank="3") == {"0": 2 * GIB}
    (parent,) = [dict(labels) for name, labels, _ in answer["samples"] if dict(labels).get("pid") == str(os.getppid())]
    assert "rank" not in parent and answer.values(MEMORY_OF_PROCESS, pid=str(os.getppid())) == {"0": GIB}


def test_a_process_whose_record_comes_later_is_named_then(peer, scenario, tmp_path):
    scenario.add(f"0.process {os.getpid()} {GIB}")
    peer.ask(do="reset", record_root=str(tmp_path))
    assert peer.collect("gpu_processes").values(MEMORY_OF_PROCESS, rank="3") == {}
    with contextlib.closing(new_writer(tmp_path, rank=3, node="n1")):
        assert peer.collect("gpu_processes").values(MEMORY_OF_PROCESS, rank="3") == {"0": GIB}


def test_a_gpu_that_nobody_uses_has_no_processes(peer, scenario):
    scenario.remove(f"2.process 1002 {60 * GIB}")
    answer = peer.collect("gpu_processes")
    assert answer.values("instep_gpu_processes")["2"] == 0
    assert "2" not in answer.values("instep_gpu_process_memory_bytes")


def test_only_so_many_processes_of_a_gpu_have_series(peer, scenario):
    scenario.add(*[f"0.process {2000 + number} {number + 1}" for number in range(40)])
    answer = peer.collect("gpu_processes")
    assert answer.values("instep_gpu_processes")["0"] == 41
    pids = [dict(labels)["pid"] for name, labels, _ in answer["samples"] if name.endswith("memory_bytes")
            and dict(labels)["gpu"] == "0"]  # fmt: skip
    assert len(pids) == 32
    assert "1000" in pids and "2000" not in pids
