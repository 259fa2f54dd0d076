"""Starts `python -m trainer.worker RUN_FOLDER` somewhere."""
