"""Benchmarks of the trainer part, found by `instep bench` through entry points."""
