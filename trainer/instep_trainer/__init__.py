"""The fault-tolerant launcher, recorder and bundled trainer."""
