"""The rank record: one small file in shared memory per rank, written by the rank and read by agent and supervisor.

It outlives the rank: a killed, stopped or GIL-bound process hides nothing that it wrote before.
"""

from instep_agent.errors import (
    RankRecordError,
    RecordInvalid,
    RecordNoRoom,
    RecordStale,
    RecordTaken,
    RecordVersionUnknown,
)
from instep_agent.rank_record.create import record_path
from instep_agent.rank_record.identity import RankIdentity
from instep_agent.rank_record.layout import CompletedSource, Op, Phase
from instep_agent.rank_record.members import group_key
from instep_agent.rank_record.reader import RankRecord, RecordReader, read_record
from instep_agent.rank_record.report import report
from instep_agent.rank_record.writer import NO_TOKEN, RankRecordWriter

__all__ = [
    "NO_TOKEN",
    "CompletedSource",
    "Op",
    "Phase",
    "RankIdentity",
    "RankRecord",
    "RankRecordError",
    "RankRecordWriter",
    "RecordInvalid",
    "RecordNoRoom",
    "RecordReader",
    "RecordStale",
    "RecordTaken",
    "RecordVersionUnknown",
    "group_key",
    "read_record",
    "record_path",
    "report",
]
