"""Rows to datums: read, render, count, batch."""
