"""The reference pages say what the code does."""

import re
from pathlib import Path

from instep_agent import reference
from instep_agent.rank_record import CompletedSource, Op, Phase, layout
from instep_agent.rank_record.identity import RankIdentity

REFERENCE = Path(__file__).parents[2] / "docs/reference"
RECORD = (REFERENCE / "rank-record.md").read_text(encoding="utf-8")
METRICS = (REFERENCE / "agent-metrics.md").read_text(encoding="utf-8")
WIRE = (REFERENCE / "wire.md").read_text(encoding="utf-8")


def test_the_regions_are_where_the_page_says():
    regions = layout.lay_out()
    names = ("identity", "heartbeat", "group", "live", "step", "collective")
    for name, region in zip(names, regions.in_order(), strict=True):
        assert f"| {name} | {region.offset:,} | {region.slots} | {region.slot_bytes} |" in RECORD
    assert f"{regions.collective.end:,} bytes" in RECORD
    assert f"## Header ({layout.HEADER_BYTES} bytes)" in RECORD


def test_every_value_of_every_enumeration_is_on_the_page():
    flat = " ".join(RECORD.split())
    for member in (*Phase, *Op, *CompletedSource):
        assert re.search(rf"\b{member.value} {member.name}\b", flat), member


def test_every_field_of_the_identity_is_on_the_page():
    assert [field for field in RankIdentity.__struct_fields__ if f"`{field}`" not in RECORD] == []


def test_each_slot_ends_where_the_page_puts_its_checksum():
    for struct_format in (layout.HEARTBEAT, layout.GROUP, layout.COLLECTIVE, layout.STEP):
        assert f"| {struct_format.size} | u32, u32 |" in RECORD


def test_the_vector_has_the_stated_digest():
    from hashlib import sha256

    data = (Path(__file__).parent / "rank_record/vectors/record-1.0.bin").read_bytes()
    assert f"({len(data):,} bytes" in RECORD
    assert sha256(data).hexdigest() in RECORD


def test_every_sample_is_on_the_page():
    folder = Path(__file__).parents[2] / "agent/instep_agent"
    files = [path for path in folder.rglob("*.py") if path.name != "metric.py"]  # whose examples are no metrics
    named = {name for path in files for name in re.findall(r'"(instep_\w+)"', path.read_text())}
    assert sorted(name for name in named if f"`{name}`" not in METRICS) == []


def test_the_page_of_metrics_is_the_real_one():
    assert reference.page() == METRICS, "run make docs"


def test_every_event_of_the_agent_itself_is_on_the_page():
    for name in ("running/runner.py", "sources/kernel_log.py"):
        text = (Path(reference.__file__).parent / name).read_text(encoding="utf-8")
        kinds = re.findall(r'(?:_fact\(|_say\(state, |Fact\(\s*|kind = |else )"([a-z]+_[a-z_]+)"', text)
        assert kinds
        assert [kind for kind in kinds if f"| `{kind}` |" not in WIRE] == []
