"""What the BPF maps should hold and which flows are idle. Pure; `kernel` does it."""
