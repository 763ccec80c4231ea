"""What happens to a packet, to a client and to connections when the configuration changes, and why."""
