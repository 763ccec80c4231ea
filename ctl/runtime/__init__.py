"""What the process needs of its surroundings: scheduling, memory, logs, systemd, tasks."""
