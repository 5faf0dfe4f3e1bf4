"""The loop that asks sources when they are due, and the child processes in which drivers are asked."""
