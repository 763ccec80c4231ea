"""State on disk: node file, farms, pair, epochs. Writes are atomic and durable across a crash."""
