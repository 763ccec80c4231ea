"""The commands that programs and people use to monitor a node."""
