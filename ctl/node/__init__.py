"""A running node: its parts composed, its configuration, one change at a time, the process."""
