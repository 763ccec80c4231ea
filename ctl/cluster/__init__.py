"""This node as one of a pair: failover driver and effects, links to the peer, replication of the configuration."""
