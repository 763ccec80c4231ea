"""Connections, TLS, limits and files: what xlb-web serves before it looks at a request."""
