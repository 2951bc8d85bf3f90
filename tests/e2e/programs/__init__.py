"""Client programs, one library each: they print every event as a JSON line, `[event, data, id]`, and nothing else."""
