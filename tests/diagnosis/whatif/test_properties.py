"""What holds for every trace: order and units do not matter, and hostile bytes end in a sentence."""

from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.files.trace import read_layout, read_trace
from instep_diagnosis.whatif.analysis import analyse
from instep_diagnosis.whatif.optypes import CODES, OPTYPES
from instep_diagnosis.whatif.report import document, text
from instep_diagnosis.whatif.synthetic import Plan, synthetic_trace
from instep_diagnosis.whatif.trace import Layout, Trace

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))


@st.composite
def traces(draw):
    """Small schedules of any layout with uneven durations."""
    pp, dp, vpp = draw(SIZES)
    layout = Layout(pp, dp, vpp if pp > 1 else 1)
    draws = np.random.default_rng(draw(st.integers(0, 2**32))).uniform(0.1, 1, (2, len(OPTYPES), pp, dp, 64))
    plan = Plan(layout, pp * draw(st.integers(1, 2)), is_overlapped=draw(st.booleans()))
    return synthetic_trace(plan, lambda t, kind, s, d, n: draws[t, CODES[kind], s, d, n], 2)[0]


def numbers(result):
    kinds = [result.ratio(seconds) for _, seconds in sorted(result.optype_seconds_T.items())]
    shares = [share for _, share in result.recovered]
    return np.concatenate([[result.slowdown, result.launch_slowdown], kinds, shares, *result.slowdown_by_worker_PD])


def reordered(trace, order):
    columns = {field.name: getattr(trace, field.name)[order] for field in fields(trace) if field.name != "layout"}
    return replace(trace, **columns)


few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(traces(), st.floats(0.01, 100))
def test_scaling_all_durations_leaves_every_slowdown(trace, factor):
    scaled = replace(
        trace,
        start_seconds_N=trace.start_seconds_N * factor,
        duration_seconds_N=trace.duration_seconds_N * factor,
    )
    assert numbers(analyse(scaled)) == pytest.approx(numbers(analyse(trace)), nan_ok=True)


@few
@given(traces(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(trace, random):
    order = list(range(len(trace.step_N)))
    random.shuffle(order)
    assert document(analyse(reordered(trace, order))) == document(analyse(trace))


@few
@given(SIZES, st.floats(0.001, 10), st.floats(0.001, 10), st.booleans())
def test_equal_durations_of_each_kind_are_a_slowdown_of_one(sizes, compute, other, is_overlapped):
    layout = Layout(sizes[0], sizes[1], sizes[2] if sizes[0] > 1 else 1)
    plan = Plan(layout, sizes[0] * 2, is_overlapped=is_overlapped)
    seconds = lambda t, kind, s, d, n: compute if kind.endswith("compute") else other  # noqa: E731
    result = analyse(synthetic_trace(plan, seconds, 2)[0])
    assert result.slowdown_by_worker_PD == pytest.approx(np.ones((layout.pp, layout.dp)))
    assert result.slowdown == pytest.approx(1)
    assert all(result.ratio(seconds) == pytest.approx(1) for seconds in result.optype_seconds_T.values())


@few
@given(traces())
def test_a_real_slowdown_is_at_least_the_ideal_of_no_work_and_all_workers_explain_all(trace):
    result = analyse(trace)
    assert result.recovered[-1][0] == trace.layout.pp * trace.layout.dp
    assert result.recovered[-1][1] == pytest.approx(1) or abs(result.slowdown - 1) < 1e-6
    assert text(result).endswith("\n")


SMALL = synthetic_trace(Plan(Layout(2, 2), 2), lambda *_: 0.1, 2)[0]


def small_table():
    columns = {"dp_rank": SMALL.dp_N, "stage": SMALL.stage_N, "step": SMALL.step_N, "seq_id": SMALL.seq_N}
    columns |= {"start_ts": SMALL.start_seconds_N, "duration": SMALL.duration_seconds_N, "mc": SMALL.chunk_N}
    return pa.table({**columns, "optype": [OPTYPES[code] for code in SMALL.optype_N]})


@settings(few, max_examples=80)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_file_with_bytes_changed_is_analysed_or_refused(tmp_path, changes):
    path = tmp_path / "trace.parquet"
    pq.write_table(small_table(), path)
    raw = bytearray(path.read_bytes())
    for place, value in changes:
        raw[place % len(raw)] = value
    path.write_bytes(raw)
    try:
        document(analyse(read_trace(path, Layout(2, 2))))
    except EvidenceError as error:
        assert str(error).endswith(".")


@settings(few, max_examples=60)
@given(raw=st.binary(max_size=200))
def test_a_meta_file_of_any_bytes_is_read_or_refused(tmp_path, raw):
    path = tmp_path / "meta.yaml"
    path.write_bytes(raw)
    with pytest.raises(EvidenceError, match=r"\.$"):
        read_layout(path)


@settings(few, max_examples=80)
@given(st.data())
def test_rows_of_any_values_are_analysed_or_refused(data):
    """Columns of wild numbers in place of the real ones, some rows at a time."""
    columns = {}
    for field in fields(Trace):
        if field.name == "layout":
            continue
        values = getattr(SMALL, field.name).copy()
        if data.draw(st.booleans()):
            wild = st.floats(width=32) if field.name.endswith("seconds_N") else st.integers(-3, 2**40)
            place = st.integers(0, len(values) - 1)
            limit = len(OPTYPES) - 1
            if field.name == "optype_N":
                wild = st.integers(-1, limit)
            for row, value in data.draw(st.lists(st.tuples(place, wild), max_size=4)):
                values[row] = value
        columns[field.name] = values
    try:
        document(analyse(Trace(layout=Layout(2, 2), **columns)))
    except EvidenceError as error:
        assert str(error).endswith(".")
