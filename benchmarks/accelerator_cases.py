"""What is measured on an accelerator: correctness first, then speed and memory.

Dimension letter: `C` clients.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks import merging as kernels
from benchmarks.measure import Line
from benchmarks.model import (
    BATCH,
    DIGITS,
    STEPS,
    Setup,
    arguments,
    language,
    language_task,
    local_round,
    over,
    setup,
    vision_task,
)
from potara_jax import merging
from potara_jax.adapters import algebra
from potara_jax.adapters.lora import is_factors
from potara_jax.clients.axis import Layout
from potara_jax.clients.fitting import fit
from potara_jax.clients.task import Task
from potara_jax.merging import Samples
from potara_jax.models.llama import LlamaConfig
from potara_jax.models.vit import ViTConfig


class Scale(NamedTuple):
    """The sizes of all cases.

    base: ViT-B/16, with `base_clients`. tiny: ViT-Ti/16, with `tiny_clients`. small:
    ViT-S/14, the size of DINOv2-S, with several `small_clients`, and chunks set by hand
    for the one before the last. llama: 1.2B parameters. adapters: of the merges. side:
    of the square matrices of the product that all are compared with.
    """

    base: ViTConfig
    base_clients: int
    tiny: ViTConfig
    tiny_clients: int
    small: ViTConfig
    small_clients: tuple[int, ...]
    by_hand: tuple[int, ...]
    side: int
    batch: int
    rank: int
    llama: LlamaConfig
    llama_clients: int
    length: int
    adapters: int
    matrix: int
    dtype: str


_WIDE = ViTConfig(classes=100, dtype="bfloat16")
FULL = Scale(
    base=_WIDE,
    base_clients=32,
    tiny=dataclasses.replace(_WIDE, width=192, heads=3),
    tiny_clients=64,
    small=dataclasses.replace(_WIDE, width=384, heads=6, patch=14),
    small_clients=(512, 4096),
    by_hand=(16, 128),
    side=224,
    batch=16,
    rank=16,
    llama=LlamaConfig(dtype="bfloat16", remat=True),
    llama_clients=8,
    length=512,
    adapters=1000,
    matrix=8192,
    dtype="bfloat16",
)
_NARROW = ViTConfig(patch=14, width=32, depth=2, heads=2, classes=10)
TINY = Scale(
    base=_NARROW,
    base_clients=3,
    tiny=_NARROW,
    tiny_clients=4,
    small=_NARROW,
    small_clients=(4, 6),
    by_hand=(1, 2),
    side=28,
    batch=2,
    rank=2,
    llama=LlamaConfig(
        vocabulary=97, width=32, hidden=64, depth=2, heads=2, key_heads=1
    ),
    llama_clients=2,
    length=24,
    adapters=4,
    matrix=256,
    dtype="float32",
)


class Lab:
    """The sizes, where files go, and what several cases share."""

    def __init__(self, scale: Scale, out: Path) -> None:
        """Nothing is made before a case asks for it."""
        self.scale, self.out = scale, out
        self.made: dict[str, Any] = {}

    def share(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    @property
    def rate(self) -> float:
        """Operations a second of a large matrix product."""
        return self.share("rate", lambda: _matrix_rate(self.scale))


def _matrix_rate(scale: Scale) -> float:
    keys = jax.random.split(jax.random.key(0))
    shape = scale.matrix, scale.matrix
    x, y = (jax.random.normal(key, shape, jnp.dtype(scale.dtype)) for key in keys)
    took = measure.seconds(partial(jax.jit(jnp.matmul), x, y), repeats=9)[0]
    return 2 * scale.matrix**3 / took


class Compiled(NamedTuple):
    """A compiled program with its arguments, and the seconds that compiling took."""

    program: Any
    args: tuple[Any, ...]
    seconds: float

    def call(self) -> Any:
        """What the program returns."""
        return self.program(*self.args)

    @property
    def temporaries(self) -> int:
        """Bytes that it holds beside its arguments and results."""
        return self.program.memory_analysis().temp_size_in_bytes


def compile_together(
    programs: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]],
) -> dict[str, Compiled]:
    """All programs compiled at the same time, so `seconds` are those of a busy host.

    One that cannot be compiled is left out, with a line that says why.
    """

    def one(fn: Callable[..., Any], args: tuple[Any, ...]) -> Compiled:
        began = time.perf_counter()
        program = jax.jit(fn).lower(*args).compile()
        return Compiled(program, args, time.perf_counter() - began)

    with ThreadPoolExecutor() as pool:
        jobs = {name: pool.submit(one, *given) for name, given in programs.items()}
    for name, job in jobs.items():
        if error := job.exception():
            print(f"  left out {name}: {error!r:.600}", flush=True)
    return {name: job.result() for name, job in jobs.items() if not job.exception()}


# --- Parity with the CPU -------------------------------------------------------------


def parity(lab: Lab) -> Iterator[Line]:
    """Gradients, weights and merges in float32, against the CPU's."""
    del lab
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    programs = {}
    for what, (fn, args) in _float32_programs().items():
        programs[f"{what}, CPU"] = fn, jax.device_put(args, cpu)
        for precision in ("default", "highest") if what == _GRADIENTS else ("highest",):
            placed = jax.device_put(args, device)
            programs[f"{what}, {precision}"] = _at(precision, fn), placed
    compiled = compile_together(programs)
    results = {name: _host(program.call()) for name, program in compiled.items()}
    for name, computed in results.items():
        what, _, precision = name.rpartition(", ")
        if precision != "CPU":
            off = _relative_error(computed, results[f"{what}, CPU"])
            aim = "<= 0.001" if precision == "highest" else ""
            where = f"{what}, products at {precision} precision"
            reference = f"the CPU's; compiled in {compiled[name].seconds:.0f} s"
            yield Line(where, f"off by {off:.1e}", reference, off, aim)


_GRADIENTS = "gradients"


def _at(precision: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its matrix products at a precision."""

    def run(*args: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return fn(*args)

    return run


def _float32_programs() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    given = setup(DIGITS)
    keys = jax.random.split(jax.random.key(5), 2 * 4)
    adapters, examples, client_keys = arguments(given, 4)
    noise = lambda k: jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(k, x.shape), adapters
    )
    ours, other = noise(keys[0]), noise(keys[1])
    rows = examples.index[:, :BATCH]
    batches = jax.tree.map(lambda x: x[rows], given.shared.pool)
    samples = Samples(batches, jnp.full(4, BATCH))
    clients = given.shared.base, ours, other, samples, examples.count, client_keys[0]

    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        _GRADIENTS: (_gradients(given.task), (given.shared.base, ours, batches))
    }
    for name, program in _merge_programs(given).items():
        programs[name] = (program, clients)
    return programs


def _gradients(task: Task) -> Callable[..., Any]:
    """The adapters' gradients on one batch each."""

    def gradients(base: Any, adapters: Any, batches: Any) -> Any:
        loss = lambda adapter, batch: task.objective(base)(adapter, batch)
        return jax.vmap(jax.grad(loss))(adapters, batches)

    return gradients


def _merge_programs(given: Setup) -> dict[str, Callable[..., Any]]:
    """Weights with merges, and merges by a constant weight."""

    one = merging.one_example(given.task.logits)
    damping = merging.relative(0.3)
    exact = merging.potara(merging.exact(one), damping=damping, space="core")
    plain = merging.potara(merging.empirical(one), damping=damping, space="factor")
    half = merging.constant(0.5)
    programs = {
        "Potara's weight, core": merging.personalise(exact, space="core"),
        "Potara's weight, factor": merging.personalise(plain, space="factor"),
        "hermite_bayes": merging.personalise(merging.hermite_bayes(given.task.loss)),
        "truncation to the rank": merging.personalise(half, space="delta", rank=8),
        "TIES, core": merging.personalise(
            half, merging.ties(density=0.5), space="core"
        ),
        "TSV": merging.personalise(half, merging.tsv(), space="core"),
    }
    return {name: _deltas_of(program) for name, program in programs.items()}


def _deltas_of(program: Callable[..., Any]) -> Callable[..., Any]:
    """The deltas, which do not depend on the signs and bases of factors."""

    def run(*args: Any) -> Any:
        merged = program(*args)
        deltas = {
            path: algebra.delta(entry)
            for path, entry in merged.adapter.items()
            if is_factors(entry)
        }
        return deltas, merged.weight

    return run


def _host(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def _relative_error(computed: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """The norm of the difference over that of the reference; NaN passes no aim."""
    square = lambda arrays: sum(float((x**2).sum()) for x in arrays)
    differences = [x - y for x, y in zip(computed, reference, strict=True)]
    return float(np.sqrt(square(differences) / square(reference)))


# --- ViT-B/16 ------------------------------------------------------------------------


def vit(lab: Lab) -> Iterator[Line]:
    """A round of ViT-B/16's clients: the share of the hardware, a loop, and PEFT."""
    scale, clients = lab.scale, lab.scale.base_clients
    given = lab.share("vit", lambda: _vision(scale.base, scale))
    args = given.shared, *arguments(given, clients)
    programs = {"XLA's attention": (over(local_round(given))(Layout()), args)}
    flash = given._replace(task=vision_task(_flash(scale.base)))
    programs["flash attention"] = (over(local_round(flash))(Layout()), args)
    programs["one client"] = (local_round(flash), (args[0], *_first(args[1:])))
    first = jax.tree.map(lambda x: x[:1, : scale.batch], args[2].index)
    batch = jax.tree.map(lambda x: x[first], given.shared.pool)
    for name, task in (("XLA", given.task), ("flash", flash.task)):
        some = args[0].base, jax.tree.map(lambda x: x[:1], args[1]), batch
        programs[f"{name}: gradients"] = _gradients(task), some
    compiled = compile_together(programs)
    single = compiled.pop("one client")
    pair = "flash: gradients", "XLA: gradients"
    gradients = [compiled.pop(name) for name in pair if name in compiled]
    yield Line(
        f"a product of {scale.matrix} x {scale.matrix} matrices, {scale.dtype}",
        f"{lab.rate / 1e12:.0f} TFLOP/s",
        "",
        1.0,
    )
    times = {}
    for name, program in compiled.items():
        times[name] = measure.seconds(program.call, repeats=5)[0]
        what = f"ViT-B/16, rank {scale.rank}, {clients} clients x {scale.batch}, {name}"
        yield _share_line(what, given, clients, times[name], lab.rate)
        yield _memory_line(what, program)
    if len(gradients) == 2:
        off = _relative_error(*(_host(program.call()) for program in gradients))
        what = f"ViT-B/16, gradients with flash attention, {scale.dtype}"
        yield Line(what, f"off by {off:.1e}", "XLA's attention", off)
    fastest = min(times, key=times.__getitem__)
    lab.made["round"], best = compiled[fastest], times[fastest]
    what = f"ViT-B/16, {clients} clients, the faster of both"
    yield _share_line(what, given, clients, best, lab.rate, ">= 0.55")
    loop = _looped(single.call, clients)
    yield _against("ViT-B/16, against a loop", clients, best, loop)
    yield _peft_line(scale, clients, best)


def _vision(config: ViTConfig, scale: Scale, batch: int | None = None) -> Setup:
    batch = batch or scale.batch
    return setup(config, side=scale.side, batch=batch, rank=scale.rank)


def _flash(config: Any) -> Any:
    """The model with flash attention, where there is any."""
    can = config.dtype == "bfloat16" and jax.default_backend() == "gpu"
    return dataclasses.replace(config, attention="cudnn") if can else config


def _looped(call: Callable[[], Any], clients: int) -> float:
    """Seconds of a loop over clients, of which 16 at most are computed."""
    few = min(16, clients)
    took = measure.seconds(lambda: [call() for _ in range(few)], repeats=3)[0]
    return took * clients / few


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


def _share_line(
    what: str, given: Setup, clients: int, took: float, rate: float, aim: str = ""
) -> Line:
    needed = clients * STEPS * given.operations / took
    return Line(
        what,
        f"{clients * STEPS / took:,.0f} client-steps/s, {needed / 1e12:.3g} TFLOP/s",
        f"matrix product {rate / 1e12:.3g} TFLOP/s",
        needed / rate,
        aim,
    )


def _memory_line(what: str, program: Compiled) -> Line:
    return Line(
        f"{what}: temporary memory",
        measure.show_bytes(program.temporaries),
        f"compiled in {program.seconds:.0f} s",
        program.temporaries / 1e9,
    )


def _against(what: str, clients: int, ours: float, theirs: float, aim="") -> Line:
    pace = lambda took: f"{clients * STEPS / took:,.0f} client-steps/s"
    return Line(what, pace(ours), pace(theirs), theirs / ours, aim)


def _peft_line(scale: Scale, clients: int, ours: float) -> Line:
    from benchmarks import torch_clients

    config, few = scale.base, min(clients, 4)
    sizes = torch_clients.Sizes(
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        patch=config.patch,
        side=scale.side,
        colours=3,
        classes=config.classes,
    )
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    run = torch_clients.looping(
        few,
        steps=STEPS,
        batch=scale.batch,
        rank=scale.rank,
        sizes=sizes,
        device=device,
        dtype=scale.dtype,
    )
    theirs = measure.seconds(run, repeats=3)[0] * clients / few
    return _against("ViT-B/16, against PyTorch and PEFT", clients, ours, theirs)


# --- Many clients of smaller models --------------------------------------------------


def loop(lab: Lab) -> Iterator[Line]:
    """ViT-Ti/16 and the digits' ViT: all clients at once, against a loop."""
    scale, clients = lab.scale, lab.scale.tiny_clients
    models = {
        "ViT-Ti/16": (_vision(_flash(scale.tiny), scale, BATCH), clients),
        "the digits' ViT": (setup(DIGITS), 16 * clients),
    }
    programs = {}
    for name, (given, number) in models.items():
        args = given.shared, *arguments(given, number)
        one = local_round(given)
        programs[name] = (over(one)(Layout()), args)
        programs[f"{name}, one"] = (one, (args[0], *_first(args[1:])))
    compiled = compile_together(programs)
    for name, (_, number) in models.items():
        ours = measure.seconds(compiled[name].call, repeats=7)[0]
        looped = _looped(compiled[f"{name}, one"].call, number)
        aim = ">= 10" if name == "ViT-Ti/16" else ""
        what = f"{name}, {number} clients x {BATCH}, against a loop"
        yield _against(what, number, ours, looped, aim)


def many(lab: Lab) -> Iterator[Line]:
    """ViT-S/14, from few clients to many, with the chunk found and set by hand."""
    sizes = lab.scale
    given = _vision(_flash(sizes.small), sizes, BATCH)
    make = over(local_round(given))
    args = {n: (given.shared, *arguments(given, n)) for n in sizes.small_clients}
    automatic, middle = {}, sizes.small_clients[0]
    for clients, given_args in args.items():
        fitted = fit(make, Layout(), clients, given_args)
        call, few = partial(fitted.program, *given_args), clients == middle
        automatic[clients] = measure.seconds(call, repeats=3 if few else 1)[0]
        what = f"ViT-S/14, {clients} clients x {BATCH}, chunk {fitted.chunk} found"
        yield _share_line(what, given, clients, automatic[clients], lab.rate)
        shown = measure.show_bytes(fitted.needed)
        yield Line(f"{what}: memory", shown, "", fitted.needed / 1e9)
    for chunk in sizes.by_hand:
        program = jax.jit(make(Layout(chunk)))
        took = measure.seconds(partial(program, *args[middle]), repeats=3)[0]
        what = f"ViT-S/14, {middle} clients, chunk found against {chunk} by hand"
        yield _against(what, middle, automatic[middle], took, ">= 0.95")


# --- A language model ----------------------------------------------------------------


def llama(lab: Lab) -> Iterator[Line]:
    """A round of a Llama's clients, with flash attention and without."""
    scale, clients = lab.scale, lab.scale.llama_clients
    batch = max(1, scale.batch // 4)  # examples; ViT-B's have fewer tokens
    given = language(scale.llama, length=scale.length, batch=batch, rank=scale.rank)
    flash = given._replace(task=language_task(_flash(scale.llama)))
    args = given.shared, *arguments(given, clients)
    programs = {
        "XLA's attention": (over(local_round(given))(Layout()), args),
        "flash attention": (over(local_round(flash))(Layout()), args),
    }
    for name, program in compile_together(programs).items():
        took = measure.seconds(program.call, repeats=3)[0]
        what = f"Llama, 1.2B parameters, {clients} clients x {batch} x {scale.length}"
        yield _share_line(f"{what}, {name}", given, clients, took, lab.rate)
        yield _memory_line(f"{what}, {name}", program)


# --- Merging -------------------------------------------------------------------------


def merges(lab: Lab) -> Iterator[Line]:
    """Merges of a thousand ViT-B adapters against the copy; truncation against SVD."""
    sizes = kernels.Sizes(lab.scale.adapters, 9, 12, None)
    yield from kernels.bandwidth(sizes)
    yield from kernels.truncation(sizes)


def weights(lab: Lab) -> Iterator[Line]:
    """Weights and merges of ViT-B/16 by 30 samples, as a share of 60 rounds."""
    scale, clients, count = lab.scale, lab.scale.base_clients, 30
    given = lab.share("vit", lambda: _vision(scale.base, scale))
    adapters, examples, keys = arguments(given, clients)
    samples = jax.tree.map(lambda x: x[examples.index[:, :count]], given.shared.pool)
    samples = Samples(samples, jnp.full(clients, count))
    args = given.shared.base, adapters, adapters, samples, examples.count, keys[0]
    train = over(local_round(given))(Layout())
    programs = {"training": (train, (given.shared, adapters, examples, keys))}
    layout = Layout(min(8, clients))
    for name, estimator in _estimators(given).items():
        programs[name] = (merging.personalise(estimator, layout=layout), args)
    compiled = compile_together(programs)
    round_ = measure.seconds(compiled.pop("training").call, repeats=3)[0]
    for name, program in compiled.items():
        took = measure.seconds(program.call, repeats=3)[0]
        yield Line(
            f"ViT-B/16, {clients} clients, {name}, {count} samples, against 60 rounds",
            measure.show_seconds(took),
            f"training {measure.show_seconds(60 * round_)}",
            took / (60 * round_),
            "<= 0.02",
        )


def _estimators(given: Setup) -> dict[str, merging.Estimator]:
    """Few of those that `share` measures: each is compiled for a large model."""
    one = merging.one_example(given.task.logits)
    damping = merging.relative(0.3)
    empirical = merging.potara(merging.empirical(one), damping=damping, space="core")
    return {
        "Potara's weight and merge, empirical Fisher": empirical,
        "hermite_bayes' weight and merge": merging.hermite_bayes(given.task.loss),
        "tempered_bayes' weight and merge": merging.tempered_bayes(given.task.logits),
    }


# --- Where the time goes -------------------------------------------------------------

_KINDS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "dot"),
    "attention": ("fmha", "flash", "sdpa", "softmax", "cudnn"),
    "copies": ("copy", "transpose", "memcpy", "memset", "concatenate"),
    "reductions": ("reduce",),
    "other fusions": ("fusion",),
}


def profile(lab: Lab) -> Iterator[Line]:
    """The kernels of a round of ViT-B/16, by kind, and those that take longest.

    `vit.hlo` has the program, in which their names can be looked up.
    """
    if "round" not in lab.made:
        raise ValueError("the case 'profile' needs 'vit' before it")
    call, folder = lab.made["round"].call, lab.out / "profile"
    lab.out.mkdir(parents=True, exist_ok=True)
    (lab.out / "vit.hlo").write_text(lab.made["round"].program.as_text())
    jax.block_until_ready(call())
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(call())
    spent = _kernel_seconds(folder)
    total = sum(spent.values())
    kinds: dict[str, float] = {}
    for name, seconds in spent.items():
        kinds[_kind(name)] = kinds.get(_kind(name), 0.0) + seconds
    longest = sorted(spent, key=spent.__getitem__, reverse=True)[:40]
    for name, seconds in [*kinds.items(), *((n, spent[n]) for n in longest)]:
        yield Line(
            f"a round of ViT-B/16: {name[:90]}",
            measure.show_seconds(seconds),
            f"all kernels {measure.show_seconds(total)}",
            seconds / total,
        )


def _kind(kernel: str) -> str:
    lower = kernel.lower()
    matching = (k for k, words in _KINDS.items() if any(w in lower for w in words))
    return next(matching, "other kernels")


def _kernel_seconds(folder: Path) -> dict[str, float]:
    """The seconds of every kernel of the device, by name, from the newest trace."""
    path = max(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    spent, on_cpu = defaultdict[str, float](float), jax.default_backend() == "cpu"
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if not plane.name.startswith("/host:CPU" if on_cpu else "/device:GPU"):
            continue
        for line in plane.lines:
            if on_cpu or line.name.startswith("Stream"):
                for event in line.events:
                    spent[event.name] += event.duration_ns / 1e9
    return spent


CASES = {
    "parity": parity,
    "vit": vit,
    "profile": profile,
    "merges": merges,
    "loop": loop,
    "llama": llama,
    "weights": weights,
    "many": many,
}
