"""Kept training states: one format for memory and disk, two slots per rank, and the agreement on where to resume."""
