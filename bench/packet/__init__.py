"""Part "packet" of the suite: what a packet costs in the program, by what it is and what the node knows of it."""
