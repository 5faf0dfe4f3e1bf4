"""All that eight healthy GPUs say, against a golden file; INSTEP_UPDATE_GOLDEN=1 writes it anew. And real GPUs."""

import os
import re
from pathlib import Path

from instep_agent.sources import GPU_SOURCES
from nvml_scenario import pci, uuid

GOLDEN = Path(__file__).parent / "recorded/h100_gpu0.txt"
GPUS = 8
SOURCES = [source.name for source in GPU_SOURCES]
METRICS = {metric.name: metric for source in GPU_SOURCES for metric in source.metrics}


def everything(peer):
    """Give two turns of every source: the second has what compares with the first."""
    for source in SOURCES:
        peer.collect(source)
    peer.ask(do="wait", seconds=60.0)
    return {source: peer.collect(source) for source in SOURCES}


def lines_of(samples, gpu):
    """Give one GPU's samples as lines, its own names put as if it were GPU 0."""
    own = {f'gpu="{gpu}"': 'gpu="0"', uuid(gpu): uuid(0), pci(gpu): pci(0), f'minor="{gpu}"': 'minor="0"'}
    own |= {f"16530240{gpu:05d}": "1653024000000", f'pid="{1000 + gpu}"': 'pid="1000"'}
    lines = []
    for name, labels, value in samples:
        if dict(labels).get("gpu", "0") == str(gpu):
            pairs = ",".join(f'{key}="{text}"' for key, text in labels)
            lines.append(f"{name}{{{pairs}}} {value:.12g}")
    text = "\n".join(sorted(lines)) + "\n"
    for mine, first in own.items():
        text = text.replace(mine, first)
    return "\n".join(sorted(text.splitlines())) + "\n"


def test_eight_healthy_gpus_say_what_the_golden_file_says_and_no_fact(peer):
    answers = everything(peer)
    assert [fact for answer in answers.values() for fact in answer["facts"]] == []
    samples = [sample for answer in answers.values() for sample in answer["samples"]]
    if os.environ.get("INSTEP_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(lines_of(samples, 0))
    golden = GOLDEN.read_text()
    assert lines_of(samples, 0) == golden
    of_a_gpu = "".join(line for line in golden.splitlines(keepends=True) if 'gpu="' in line)
    for gpu in range(1, GPUS):
        assert lines_of(samples, gpu) == of_a_gpu


def test_every_sample_is_of_a_metric_that_its_source_states(peer):
    for source, answer in everything(peer).items():
        stated = {metric.name for each in GPU_SOURCES if each.name == source for metric in each.metrics}
        assert answer.names() <= stated


def test_no_source_says_the_same_series_twice(peer):
    for answer in everything(peer).values():
        series = [(name, tuple(map(tuple, labels))) for name, labels, _ in answer["samples"]]
        assert len(series) == len(set(series))


def test_every_metric_of_the_gpu_sources_can_be_had(peer, scenario):
    """The stand-in knows everything that a source may ask for; a metric that nothing can produce would be dead."""
    scenario.add("*.field.29 1", "*.field.30 1", "*.field.31 0", "*.temperature_threshold 90", "0.power !999")
    said = {name for answer in everything(peer).values() for name in answer.names()}
    assert METRICS.keys() - said == set()


def test_metrics_have_their_units_and_no_source_takes_anothers_name():
    names = [metric.name for source in GPU_SOURCES for metric in source.metrics]
    assert len(names) == len(set(names))
    for metric in METRICS.values():
        assert metric.name.startswith("instep_gpu_")
        assert metric.name.endswith("_total") == (metric.kind.value == "counter"), metric.name
        assert metric.help.endswith(".") and len(metric.help) > 8, metric.name
    aliases = [metric.alias for metric in METRICS.values() if metric.alias]
    assert len(aliases) == len(set(aliases))
    assert all(re.fullmatch(r"DCGM_FI_(DEV|PROF)_[A-Z0-9_]+", alias) for alias in aliases)


def test_the_sources_share_one_child_and_say_what_they_are():
    assert {source.child for source in GPU_SOURCES} == {"nvml"}
    for source in GPU_SOURCES:
        assert source.deadline_seconds > 0 and source.interval_seconds >= 1.0
        assert source.__doc__


def test_real_gpus_answer_in_the_same_shape(real_peer):
    for source, answer in everything(real_peer).items():
        assert "failed" not in answer, answer
        assert "absent" not in answer, answer
        assert answer.names() <= METRICS.keys()
        for name, labels, value in answer["samples"]:
            assert abs(value) < 2**62, (source, name, labels, value)
    state = real_peer.collect("gpu_state")
    assert state.values("instep_gpu_is_lost") and not any(state.values("instep_gpu_is_lost").values())
    for name in ("instep_gpu_memory_total_bytes", "instep_gpu_power_watts", "instep_gpu_temperature_celsius"):
        assert all(value > 0 for value in state.values(name).values())
    assert real_peer.collect("gpu_identity").names() >= {"instep_gpu_info", "instep_gpu_driver_info"}


def test_a_turn_asks_the_driver_no_more_often_than_this(peer):
    """The budget of the agent is counted in calls: what the driver itself needs for each cannot be measured here."""
    everything(peer)
    calls = {source: len(peer.collect(source)["calls"]) for source in SOURCES}
    per_gpu = {source: count / GPUS for source, count in calls.items()}
    assert per_gpu["gpu_state"] <= 9
    assert per_gpu["gpu_recovery"] <= 1
    assert per_gpu["gpu_memory_health"] <= 3
    assert per_gpu["gpu_links"] <= 4
    assert per_gpu["gpu_pcie"] <= 3
    assert per_gpu["gpu_performance"] <= 2
    assert per_gpu["gpu_processes"] <= 1
    assert per_gpu["gpu_identity"] <= 3
    assert calls["gpu_events"] == 1
