"""A cluster of simulated nodes on this machine: one server, and per node an agent and a supervisor, all real
processes."""
