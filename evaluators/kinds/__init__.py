"""The evaluators that ship: one file each, and one table (`table.py`)."""
