"""Merges, one file each; `registry.merges()` lists them and those of other modules."""
