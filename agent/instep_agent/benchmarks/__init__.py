"""What the agent costs and how fast it is, measured over a real agent process on a simulated node."""
