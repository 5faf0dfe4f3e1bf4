"""A kernel line is joined with the GPU that it names."""

import pytest
from instep_agent.wire import Event, GpuReport
from instep_collector.facts import FACT_SECONDS, FACTS_MAX, FactBook, KeptEvent, as_fact
from instep_diagnosis.facts import kernel_fault

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


LOST = (
    "NVRM: The NVIDIA GPU 0000:5e:00.0",
    "NVRM: (PCI ID: 10de:2330) installed in this system has",
    "NVRM: fallen off the bus and is not responding to commands.",
)


def last_fact(*lines, boots=None, at=None):
    """The fact of the last of some lines, told one after the other."""
    book = FactBook()
    for number, text in enumerate(lines):
        boot_id = boots[number] if boots else "boot"
        book.add("n", line(text, number), at[number] if at else 100.0 + number / 1000, boot_id=boot_id)
    return book.facts(["n"], 110.0, GPUS)[-1]


@pytest.mark.parametrize("between", [(), ("nvidia 0000:3b:00.0: AER: corrected",), ("usb 1-1: new device",)])
def test_a_gpu_that_is_lost_over_several_lines_is_named(between):
    fact = last_fact(LOST[0], *between, *LOST[1:])
    assert (fact.gpu, fact.gpu_index, fact.fields["pci"]) == ("GPU-1", 1, "0000:5e:00.0")
    fault = kernel_fault(fact)
    assert (fault.fault_class, fault.line.pci, fault.severity) == ("gpu-lost", "0000:5e:00.0", "fatal")


def test_each_of_two_statements_names_its_own_gpu():
    fact = last_fact(*LOST, LOST[0].replace("5e", "3b"), *LOST[1:])
    assert fact.gpu == "GPU-0"


def test_a_fault_with_an_address_between_the_lines_stays_its_own():
    xid = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."
    assert last_fact(LOST[0], xid).text == xid
    fact = last_fact(LOST[0], xid, *LOST[1:])
    assert (fact.gpu, kernel_fault(fact).fault_class) == ("GPU-1", "gpu-lost")


@pytest.mark.parametrize(
    ("boots", "at"),
    [(("boot-1", "boot-1", "boot-2"), None), (None, (100.0, 100.0, 103.0))],
    ids=["another boot", "seconds later"],
)
def test_a_line_of_another_boot_or_time_is_no_part_of_a_statement(boots, at):
    fact = last_fact(*LOST, boots=boots, at=at)
    assert (fact.text, fact.gpu) == (LOST[2], "")


def test_an_address_that_runs_into_a_word_is_no_trouble():
    assert last_fact("NVRM: The NVIDIA GPU 0000:5e:00abc", *LOST[1:]).gpu in ("", "GPU-1")


def test_a_healthy_gpu_told_over_several_lines_is_no_fault():
    told = (LOST[0], LOST[1], "NVRM: been initialised.")
    assert all(kernel_fault(last_fact(*told[:count])) is None for count in (1, 2, 3))
    assert last_fact(*told).text == told[2]


@pytest.mark.parametrize(("kind", "gpu", "index"), [("gpu_recovery", "GPU-9", 9), ("nccl_rank_dead", "", None)])
def test_a_gpu_that_is_on_no_list_any_more_is_named_by_its_own_event_and_by_no_other(kind, gpu, index):
    fields = {"gpu": "9", "uuid": "GPU-9", "pci": "0000:9b:00"}
    event = Event(id="1", kind=kind, text="", age_seconds=0.0, monotonic_ns=0, realtime_ns=0, fields=fields)
    fact = as_fact("n", KeptEvent(event, 0.0, "b"), 1.0, ())
    assert (fact.gpu, fact.gpu_index) == (gpu, index)
