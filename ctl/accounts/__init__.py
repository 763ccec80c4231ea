"""Passwords and API tokens of the accounts of xlb-web: hashed where they are entered, so that xlbd never has them."""
