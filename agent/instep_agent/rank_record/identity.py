"""Who a rank is: the part of a record that is JSON, because it is written rarely and read by people."""

from __future__ import annotations

from typing import Annotated

import msgspec

Name = Annotated[str, msgspec.Meta(max_length=255)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Coordinate = tuple[Annotated[str, msgspec.Meta(max_length=32)], Count]


class RankIdentity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Identity of one rank of one attempt. Empty text means *not known*.

    The limits are checked when it is read, since a record is untrusted, and when it is written, so that the writer
    hears of it.
    """

    cluster: Name = ""
    job: Name
    run: Name
    attempt: Count
    rank: Count
    local_rank: Count
    world_size: Count
    node: Name
    gpu: Name = ""
    """GPU UUID, or its index on the node as text."""
    mesh: Annotated[tuple[Coordinate, ...], msgspec.Meta(max_length=8)] = ()
    """Named coordinates, such as (("dp", 1), ("pp", 0))."""
    namespace: Name = ""
    pod_uid: Name = ""
    container: Name = ""
    scheduler_job_id: Name = ""
    is_annotated: bool = False
    unobserved: Annotated[tuple[Name, ...], msgspec.Meta(max_length=32)] = ()
    """Paths that cannot be seen in this rank, such as `p2p`."""


def encode_identity(identity: RankIdentity) -> bytes:
    """Give the JSON of an identity; raise ValueError with one sentence when it is beyond the limits."""
    text = msgspec.json.encode(identity)
    decode_identity(text)
    return text


def decode_identity(text: bytes) -> RankIdentity:
    """Give the identity in `text`; raise ValueError when it is not one."""
    try:
        return msgspec.json.decode(text, type=RankIdentity)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The identity of a rank is not acceptable: {error}.") from error
