"""Numbered stories: each recipe is a program and, in percent format, a notebook."""
