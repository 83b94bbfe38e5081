"""A server and four nodes on this machine, with TLS and authenticated nodes.

    python examples/flower/deploy.py            (or: make flower)

Pre-trains a small ViT on rotated digits, deals upright ones to eight clients on four
nodes, starts a SuperLink and a SuperNode for each, and runs the app of this folder.
Files and logs are in `runs/flower`. Expect an accuracy of about 63 % of the federated
adapter, 70 % of the local ones, and 74 % of the merged ones.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

APP = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
NODES, CLIENTS, PORT = 4, 8, 9400


def prepare(out: Path) -> None:
    """The base, and every node's file of its clients' digits."""
    import jax
    import numpy as np
    import optax
    from flax.traverse_util import flatten_dict

    sys.path.insert(0, str(APP))
    from digits.app import EXAMPLE, MODEL

    from potara_jax.data import dealing, digits
    from potara_jax.models.pretraining import pretrain

    def loss(params, batch):
        logits = MODEL.apply({"params": params}, batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    start, key = jax.random.split(jax.random.key(0))
    images = digits.load(0)
    base, _ = pretrain(
        loss,
        MODEL.init(start, EXAMPLE.inputs)["params"],
        digits.upstream_images(images),
        key,
        steps=300,
        batch_size=64,
        learning_rate=2e-3,
    )
    np.savez(out / "base.npz", **flatten_dict(base, sep="/"))
    labels = images.labels[images.clients]
    groups = dealing.deal(
        np.random.default_rng(0), labels, "0.3", clients=CLIENTS, minimum=60
    )
    for node in range(NODES):
        mine = {}
        for client in range(node, CLIENTS, NODES):
            index = images.clients[groups[client]]
            mine[f"images_{client}"] = images.images[index]
            mine[f"labels_{client}"] = images.labels[index]
        np.savez(out / f"node-{node}.npz", **mine)


def credentials(out: Path) -> None:
    """A certificate of the server, and every node's key pair."""
    certificate = (
        *("openssl", "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "30"),
        *("-keyout", out / "server.key", "-out", out / "server.pem"),
        *("-subj", "/CN=127.0.0.1"),
        *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
    )
    call(*certificate, stderr=subprocess.DEVNULL)
    make_key = "ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f"
    for node in range(NODES):
        call(*make_key, out / f"key-{node}")


def call(*words: object, **options: Any) -> None:
    """Run a command to its end."""
    subprocess.run([str(word) for word in words], check=True, **options)


@contextlib.contextmanager
def started(log: Path, words: tuple[object, ...]) -> Iterator[subprocess.Popen]:
    """A command in the background, which ends with the block, as what it started."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdout=file,
            stderr=file,
            env=environment(log.parent),
            cwd=log.parent,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """End a process and what it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(out: Path) -> dict[str, str]:
    """Flower's files are in `out`, and compiled programs serve all processes."""
    return os.environ | {
        "FLWR_HOME": str(out / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


def superlink(out: Path) -> tuple[object, ...]:
    """The command of the server."""
    tls = (
        "--ssl-ca-certfile",
        out / "server.pem",
        "--ssl-certfile",
        out / "server.pem",
    )
    return (
        *(BIN / "flower-superlink", *tls, "--ssl-keyfile", out / "server.key"),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--port", PORT),
    )


def supernode(out: Path, node: int) -> tuple[object, ...]:
    """The command of a node."""
    return (
        *(BIN / "flower-supernode", "--root-certificates", out / "server.pem"),
        *("--superlink", f"127.0.0.1:{PORT}", "--port", PORT + 1 + node),
        *("--auth-supernode-private-key", out / f"key-{node}"),
        *("--node-config", f'data="{out}/node-{node}.npz" keep="{out}/kept-{node}"'),
    )


@contextlib.contextmanager
def deployed(out: Path) -> Iterator[list[subprocess.Popen]]:
    """A SuperLink and all SuperNodes, which are authenticated; yields the nodes."""
    home = out / "home"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
        f'address = "127.0.0.1:{PORT}"\nroot-certificates = "{out}/server.pem"\n'
    )
    with contextlib.ExitStack() as stack:
        start = lambda name, words: stack.enter_context(
            started(out / f"{name}.log", words)
        )
        start("superlink", superlink(out))
        wait_for(PORT)
        (out / "nodes").write_text(" ".join(registered(out, n) for n in range(NODES)))
        yield [start(f"node-{node}", supernode(out, node)) for node in range(NODES)]


def registered(out: Path, node: int) -> str:
    """Give a node's key to the server: the number it gets, and the node's clients."""
    key = out / f"key-{node}.pub"
    words = BIN / "flwr", "supernode", "register", key, "here", "--format", "json"
    answer = subprocess.run(
        [str(word) for word in words],
        check=True,
        env=environment(out),
        stdout=subprocess.PIPE,
        text=True,
    )
    number = json.loads(answer.stdout)["node-id"]
    return f"{number}:" + ",".join(map(str, range(node, CLIENTS, NODES)))


def wait_for(port: int, seconds: float = 120.0) -> None:
    """Wait until something listens on a port of this machine."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return
        time.sleep(0.5)
    raise SystemExit(f"nothing listens on port {port}: see superlink.log")


def run(out: Path, config: str = "") -> subprocess.Popen:
    """The app of this folder, whose log is a pipe."""
    files = f'base="{out}/base.npz" out="{out}/digits.json" keep="{out}/kept"'
    config = f'{files} nodes="{(out / "nodes").read_text()}" {config}'
    words = "run", APP, "here", "--stream", "--run-config", config
    return subprocess.Popen(
        [str(word) for word in (BIN / "flwr", *words)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(out),
    )


def main() -> None:
    """Prepare, start everything, run, and stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/flower"))
    parser.add_argument("--run-config", default="", help="as `flwr run` takes it")
    given = parser.parse_args()
    out = given.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    prepare(out)
    credentials(out)
    with deployed(out), run(out, given.run_config) as process:
        for line in process.stdout:
            print(line, end="", flush=True)


if __name__ == "__main__":
    main()
