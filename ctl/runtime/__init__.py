"""The process environment: scheduling, memory, logs, systemd, tasks."""
