"""The NVML stand-in itself: it builds without a warning, says why it cannot, and never answers from half a file."""

import subprocess

import nvml_library as library
import pytest
from instep_agent.sources import GPU_SOURCES
from nvml_library import build
from nvml_peer import Peer
from nvml_scenario import Scenario, healthy_lines

HAMMERED_TURNS = 60


def test_without_a_compiler_it_skips_and_in_ci_it_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install gcc"):
        build(tmp_path)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install gcc"):
        build(tmp_path)


def test_without_the_header_it_says_which_package_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "header_folder", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="nvidia-nvml-dev"):
        build(tmp_path)


def test_a_function_with_another_shape_than_the_headers_does_not_build(tmp_path, monkeypatch, nvml_library):
    monkeypatch.setattr(library, "SOURCES", tmp_path)
    (tmp_path / "one.c").write_text("#include <nvml.h>\nint nvmlInit_v2(void) { return 0; }\n")
    with pytest.raises(AssertionError, match="conflicting types"):
        build(tmp_path)


def test_every_function_that_a_source_calls_is_there(nvml_library, tmp_path):
    scenario = Scenario(tmp_path / "scenario.txt")
    scenario.healthy(1)
    with Peer(nvml_library, scenario.path) as peer:
        answers = [peer.collect(source.name) for source in GPU_SOURCES for _ in range(2)]
        errors = peer.collect("gpu_state").values("instep_gpu_read_errors_total")
    called = {call.split()[0] for answer in answers for call in answer["calls"]}
    assert len(called) > 30
    assert errors == {}
    symbols = subprocess.run(["nm", "-D", nvml_library / library.NAME], capture_output=True, text=True).stdout
    exported = {line.split()[2] for line in symbols.splitlines() if " T " in line}
    versions = {name: [name, f"{name}_v2", f"{name}_v3", f"{name}WithFlags"] for name in called}
    assert [name for name, known in versions.items() if not exported & set(known)] == []


def test_a_scenario_that_is_replaced_all_the_time_is_never_half_read(nvml_library, tmp_path):
    scenario = Scenario(tmp_path / "scenario.txt")
    warm, cold = ([*healthy_lines(8), f"*.temperature {celsius}"] for celsius in (90, 30))
    scenario.write(cold)
    with Peer(nvml_library, scenario.path) as peer:
        for turn in range(HAMMERED_TURNS):
            peer.order(do="collect", source="gpu_state")
            scenario.write(warm if turn % 2 else cold)
            answer = peer.answer()
            temperatures = answer.values("instep_gpu_temperature_celsius")
            assert sorted(temperatures) == [str(gpu) for gpu in range(8)]
            assert set(temperatures.values()) <= {30.0, 90.0}
            assert answer["facts"] == []
