"""Many clients at once: the client axis, what they learn, and how they train.

`over_clients` is to clients what `jax.vmap` is to examples. `classification` and
`objective` say what is learned on a Flax model; `train_adapters` trains many adapters
on one frozen base.
"""

from potara_jax.clients.adapters import train_adapters
from potara_jax.clients.axis import AUTO, Layout, over_clients
from potara_jax.clients.hosts import HostsDiffer, check_hosts, joined
from potara_jax.clients.mesh import make_mesh
from potara_jax.clients.model_task import ModelTask, classification, objective
from potara_jax.clients.task import Metric, Task
from potara_jax.clients.training import Train

__all__ = [
    "AUTO",
    "HostsDiffer",
    "Layout",
    "Metric",
    "ModelTask",
    "Task",
    "Train",
    "check_hosts",
    "classification",
    "joined",
    "make_mesh",
    "objective",
    "over_clients",
    "train_adapters",
]
