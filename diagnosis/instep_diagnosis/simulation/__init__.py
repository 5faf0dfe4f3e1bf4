"""Seeded simulations with a known truth, for tests and for figures; pure."""
