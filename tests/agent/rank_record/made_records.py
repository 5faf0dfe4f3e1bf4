"""How these tests make records: a writer with a plain identity, and a reader's view of its file."""

import time

from instep_agent.rank_record import RankIdentity, RankRecordWriter, read_record, report


def identity_of(rank=0, **changes):
    fields = {
        "job": "job",
        "run": "run",
        "attempt": 0,
        "rank": rank,
        "local_rank": rank,
        "world_size": 4,
        "node": "node-a",
    }
    return RankIdentity(**(fields | changes))


def new_writer(root, rank=0, *, groups=4, steps=8, collectives=16, **changes):
    return RankRecordWriter.create(
        root, identity_of(rank, **changes), groups=groups, steps=steps, collectives=collectives
    )


def report_of(writer_or_path, *, after_seconds=0.0, **options):
    record = read_record(getattr(writer_or_path, "path", writer_or_path))
    return report(record, now_monotonic_ns=time.monotonic_ns() + int(after_seconds * 1e9), **options)
