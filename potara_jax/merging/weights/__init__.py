"""Merge weights, one file each; `registry.weights()` lists them and others' too."""
