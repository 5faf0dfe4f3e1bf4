"""What the kernel says of processes, mounts and PCI devices."""
