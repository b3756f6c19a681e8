"""A process and its files: multi-host, preemption, watchdog, locks, atomic writes, checksums."""
