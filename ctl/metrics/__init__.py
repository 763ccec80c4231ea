"""Metrics of a node for Prometheus, made from the daemon's answer to `metrics`."""
