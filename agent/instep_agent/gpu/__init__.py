"""GPUs as their driver tells them; the only room that talks to NVML."""
