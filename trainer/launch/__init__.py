"""Starts `python -m trainer.worker run.json` somewhere."""
