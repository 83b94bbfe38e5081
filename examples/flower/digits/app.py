"""The server's and the clients' apps. Change what they learn, and from what.

A node has a file of its clients' images, which it names when it is started:

    flower-supernode --node-config 'data="node-0.npz" keep="kept-0"' ...

with `images_<c>` `[N, 8, 8, 1]` and `labels_<c>` `[N]` of its clients `c`, and a folder
of what they keep between rounds.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

import potara_jax as pj
from potara_jax.adapters import lora
from potara_jax.clients import Train
from potara_jax.data.federation import Batch
from potara_jax.federated.registry import algorithms
from potara_jax.flower import (
    Deployment,
    Node,
    Personal,
    Rounds,
    as_client_app,
    as_server_app,
)
from potara_jax.models.vit import ViT, ViTConfig

MODEL = ViT(ViTConfig(patch=2, width=64, depth=2, heads=4, classes=10))
EXAMPLE = Batch(jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32))
RANK, SCALE = 4, 2.0


@functools.cache
def deployment_of(settings):
    """The federation, from the run's settings."""
    settings = dict(settings)
    with np.load(settings["base"]) as file:
        base = unflatten_dict({tuple(k.split("/")): file[k] for k in file.files})
    sites = lora.find_sites(MODEL, EXAMPLE.inputs, targets=["query", "value"])
    task = pj.classification(MODEL).at(SCALE, sites)
    train = Train(optax.adamw(settings["learning-rate"]), steps=10, batch_size=16)
    return Deployment(
        task=task,
        algorithm=algorithms()[settings["algorithm"]].make(task, train),
        base=jax.tree.map(jnp.asarray, base),
        adapter=lora.init(jax.random.key(1), sites, rank=RANK),
        example=EXAMPLE,
        clients=settings["clients"],
        key=jax.random.key(0),
        personal=Personal(train, rounds=settings["local-rounds"]),
    )


def deployment(context):
    """The federation."""
    return deployment_of(tuple(sorted(context.run_config.items())))


def data(context):
    """This node's clients."""
    with np.load(context.node_config["data"]) as file:
        numbers = sorted(int(k.split("_")[1]) for k in file.files if "images" in k)
        examples = [(file[f"images_{c}"], file[f"labels_{c}"]) for c in numbers]
    key = jax.random.key(0)
    split = pj.Federation.of(examples, heldout=20, test=0.3, key=key)
    return Node(tuple(numbers), split)


def nodes(context):
    """Which clients each node may have: any, or as `nodes="NODE:0,4 NODE:1,5"` says."""
    pairs = (pair.split(":") for pair in context.run_config["nodes"].split())
    numbers = lambda clients: [int(client) for client in clients.split(",")]
    return {int(node): numbers(clients) for node, clients in pairs} or None


def folder(settings):
    """Where the server, or a node, keeps what it has done: nowhere, or in `keep`."""
    keep = settings.get("keep")
    return Path(keep) if keep else None


def rounds(context):
    """How the server leads the rounds."""
    settings = context.run_config
    return Rounds(settings["rounds"], timeout=settings["timeout"])


def write(context, outcome):
    """Show and keep the scores of all clients, before and after the merge."""
    names = ("federated-score", "local-score", "score")
    mean = {n: np.mean([of[n] for of in outcome.scores.values()]) for n in names}
    print(*(f"{name} {100 * value:.1f}" for name, value in mean.items()), sep="  ")
    text = json.dumps(outcome.scores, indent=1)
    Path(context.run_config["out"]).write_text(text + "\n", encoding="utf-8")


server = as_server_app(
    deployment,
    rounds,
    nodes=nodes,
    folder=lambda context: folder(context.run_config),
    on_end=write,
)
client = as_client_app(
    deployment, data, folder=lambda context: folder(context.node_config)
)
