"""Configurations of other load balancers as farms files."""
