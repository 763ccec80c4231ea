"""What is on disk: node file, farms, pair, epochs. Written so that a crash at any instant loses nothing."""
