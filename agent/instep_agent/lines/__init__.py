"""Log lines, of the kernel and of jobs: which matter, and which say the same thing."""
