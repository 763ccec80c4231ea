"""The desired content of the BPF maps, and which flows are idle. Pure; `kernel` applies it."""
