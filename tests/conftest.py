"""For all tests: generated input is the same in every run, and no example has a deadline.

`--hypothesis-profile=default` looks for new examples at random.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
