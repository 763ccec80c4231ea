"""Observes this machine for `ctl.diagnosis`, with or without a running daemon."""
