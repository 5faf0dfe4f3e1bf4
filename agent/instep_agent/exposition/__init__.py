"""The agent's own page for Prometheus, /metrics."""
