"""One file per family of resources that differs from the standard five methods."""
