"""Detectors: state of a job in, findings out. They know no clock, no database and no network."""
