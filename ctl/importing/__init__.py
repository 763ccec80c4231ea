"""Reads the configuration of other load balancers and makes a farms file of it."""
