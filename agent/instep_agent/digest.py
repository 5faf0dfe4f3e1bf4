"""Names made of what they name. BLAKE2b comes from its own module: by way of `hashlib` it would bring OpenSSL along."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # a Python that keeps it elsewhere: the same digests, for 1.4 MiB more
    from hashlib import blake2b


def digest(data: bytes, size_bytes: int) -> str:
    """Give the BLAKE2b of this length of the data, as hex digits.

    >>> digest(b"", 8)
    'e4a6a0577479b2b4'
    """
    return blake2b(data, digest_size=size_bytes).hexdigest()
