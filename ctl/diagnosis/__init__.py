"""What observations of a node mean: findings, each with the thing, its state and the remedy. Pure."""
