"""The experiments: one file each, which defines `EXPERIMENT`.

A new file here is a new experiment, known to `potara run NAME` and `potara list`.
"""
