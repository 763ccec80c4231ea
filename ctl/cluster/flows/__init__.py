"""Flow replication on this node: reads the kernel, sends, receives, writes the flow maps."""
