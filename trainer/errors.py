"""Errors whose message is written for the person who typed the command."""


class UsageError(ValueError):
    """What was asked for cannot be done as typed; the message names the thing, the value, and the way out."""
