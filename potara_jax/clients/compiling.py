"""How much effort the compilation of a program is worth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

# On a CPU, programs of a toy are compiled in a quarter of the time with these options,
# and run up to three times as long, which for few numbers is still no time.
_QUICK: dict[str, bool | int] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,  # unknown to later versions of XLA
    "xla_cpu_parallel_codegen_split_count": 1,
}
_FEW = 300_000  # numbers among a program's arguments


def jit(fn: Callable[..., Any], **options: Any) -> Jitted:
    """`jax.jit`, but on a CPU a program of few numbers is compiled quickly.

    Both ways compute the same, up to rounding.

    Args:
      fn: the function to compile.
      **options: as of `jax.jit`.
    """
    return Jitted(fn, **options)


class Jitted:
    """A compiled function, see `jit`."""

    def __init__(self, fn: Callable[..., Any], **options: Any) -> None:
        self._whole = jax.jit(fn, **options)
        self._make_quick = lambda: jax.jit(fn, compiler_options=_known(), **options)
        self._quick: Any = None

    def __call__(self, *args: Any) -> Any:
        return self._for(args)(*args)

    def lower(self, *args: Any) -> Any:
        """As of `jax.jit`'s functions."""
        return self._for(args).lower(*args)

    def _cache_size(self) -> int:
        """How often it was compiled, as of `jax.jit`'s functions."""
        made: list[Any] = [x for x in (self._whole, self._quick) if x is not None]
        return sum(program._cache_size() for program in made)

    def _for(self, args: tuple[Any, ...]) -> Any:
        """The program for these arguments. XLA takes no options within another one."""
        leaves = jax.tree.leaves(args)
        if any(isinstance(x, jax.core.Tracer) for x in leaves) or _are_many(leaves):
            return self._whole
        if self._quick is None:
            self._quick = self._make_quick()
        return self._quick


def _are_many(leaves: list[Any]) -> bool:
    return sum(getattr(x, "size", 1) for x in leaves) > _FEW


@cache
def _known() -> dict[str, bool | int] | None:
    """Those of the options that this version of XLA has; none but on a CPU."""
    if jax.default_backend() != "cpu":
        return None
    return {name: value for name, value in _QUICK.items() if _has(name, value)}


def _has(name: str, value: bool | int) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
