"""How properties are tested: on a machine of any speed, so that a busy one fails nothing."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("xlb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xlb")
