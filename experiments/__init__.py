"""The experiments: one file each, which defines `EXPERIMENT`.

A new file here is a new experiment: `potara run NAME` and `potara list` know it.
"""
