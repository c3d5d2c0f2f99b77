"""What the machine did while a run was measured: processes, cores, clocks, GPUs and energy."""
