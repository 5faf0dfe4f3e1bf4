"""Fault injection, a feature: every injected fault is a drill and says so wherever it shows."""
