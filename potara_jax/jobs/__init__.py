"""What can be done with an experiment, and the Python calls that do it."""

from potara_jax.jobs.compare import Compare
from potara_jax.jobs.job import Job, cells_of, preset
from potara_jax.jobs.personalise import personalise
from potara_jax.jobs.result import Result
from potara_jax.jobs.run import Refused, configuration, run
from potara_jax.jobs.simulate import Simulate
from potara_jax.jobs.study import Study
from potara_jax.jobs.table import Table
from potara_jax.jobs.tune import Tune

JOBS = {job.name: job for job in (Table, Compare, Study, Tune, Simulate)}

__all__ = [
    "JOBS",
    "Compare",
    "Job",
    "Refused",
    "Result",
    "Simulate",
    "Study",
    "Table",
    "Tune",
    "cells_of",
    "configuration",
    "personalise",
    "preset",
    "run",
]
