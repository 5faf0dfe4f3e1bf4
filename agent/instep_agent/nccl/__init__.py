"""NCCL's RAS service: asking it, and what its two formats say; untrusted."""
