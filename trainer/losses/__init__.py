"""One file per loss and one table."""
