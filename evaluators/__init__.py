"""Evaluators score rollouts inside a sandbox; this package imports nothing of `trainer`."""
