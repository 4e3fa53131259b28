"""What: one model call, from the first lookup to its recorded end: targets, attempts, streaming, degraded answers."""
