"""Commands that take over the configuration of another load balancer."""
