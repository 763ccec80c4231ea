"""What programs that watch a node ask for: events and metrics."""
