"""Both nodes' real machines in one seeded world with simulated time."""
