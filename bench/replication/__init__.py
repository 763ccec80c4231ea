"""How fast a pair replicates its flows and what that costs, against conntrackd in FTFW mode."""
