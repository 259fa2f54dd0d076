"""Evaluators that somebody else wrote: snippets, reward functions, uploaded projects, legacy assertions."""
