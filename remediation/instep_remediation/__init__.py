"""Remediation: from an incident to a plan, and from a plan to guarded actions."""
