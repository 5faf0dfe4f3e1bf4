"""A kernel line is joined with the GPU that it names."""

import pytest
from instep_agent.wire import Event, GpuReport
from instep_collector.facts import FACT_SECONDS, FACTS_MAX, FactBook

GPUS = {"n": (GpuReport(index=0, uuid="GPU-0", pci="0000:3b:00"), GpuReport(index=1, uuid="GPU-1", pci="0000:5e:00"))}


def line(text, number=0):
    return Event(
        id=f"boot:epoch:{number}", kind="kernel_line", text=text, age_seconds=0.0, monotonic_ns=0, realtime_ns=0
    )


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("NVRM: Xid (PCI:0000:5e:00): 79, gone", "GPU-1"),
        ("NVRM: Xid (PCI:00000000:5E:00.0): 79, gone", "GPU-1"),
        ("NVRM: GPU at PCI:0000:3b:00: GPU-0", "GPU-0"),
        ("NVRM: Xid (PCI:0000:ff:00): 79, another machine's", ""),
        ("usb 1-1: new device", ""),
    ],
)
def test_the_gpu_is_found_by_its_pci_address(text, gpu):
    book = FactBook()
    book.add("n", line(text), 100.0, boot_id="boot")
    (fact,) = book.facts(["n"], 102.0, GPUS)
    assert (fact.gpu, fact.age_seconds, fact.boot_id) == (gpu, 2.0, "boot")


def test_facts_are_kept_once_and_bounded_and_go_when_they_explain_nothing():
    book = FactBook()
    assert book.add("n", line("x"), 0.0)
    assert not book.add("n", line("x"), 0.0)
    assert len(book.take_fresh(0.0, {})) == 1
    assert book.take_fresh(0.0, {}) == []
    assert book.facts(["n"], FACT_SECONDS + 1, {}) == []
    for number in range(1, 2 * FACTS_MAX):
        book.add("n", line("x", number), 0.0)
    assert len(book.facts(["n"], 1.0, {})) == FACTS_MAX
