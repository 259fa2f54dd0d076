"""Engines: four primitives (forward, forward_backward, optim_step, sample) plus save and load."""
