"""The account of privacy: epsilon of a federation's rounds.

The guarantee is about clients (replacing all that one client holds), against everybody
but the server itself.
"""

from __future__ import annotations

import math

from potara_jax.federated import conditions as conditions_
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.interface import Algorithm
from potara_jax.federated.privacy import Privacy
from potara_jax.federated.wire import Wire


def account(
    algorithm: Algorithm,
    wire: Wire,
    conditions: Conditions,
    *,
    clients: int,
    rounds: int,
    delta: float,
) -> float:
    """Epsilon at `delta` after the rounds; infinite without privacy.

    Args:
      algorithm: of the rounds.
      wire: whose privacy it is.
      conditions: of the rounds.
      clients: the number of all clients.
      rounds: their number.
      delta: the probability that epsilon does not hold.

    Raises:
      ValueError: see `check`; or dp-accounting is not installed.
    """
    if wire.privacy is None:
        return math.inf
    check(algorithm, conditions)
    size = conditions_.size(conditions, clients)
    return epsilon(
        wire.privacy,
        clients=size.clients,
        cohort=size.cohort,
        rounds=rounds,
        delta=delta,
    )


def check(algorithm: Algorithm, conditions: Conditions) -> None:
    """Check that an algorithm's privacy can be accounted for.

    Args:
      algorithm: of the rounds.
      conditions: of the rounds.

    Raises:
      ValueError: clipping and noise do not protect all that the server takes from the
        clients, or nobody has declared that they do.
    """
    for turn in algorithm.turns or (algorithm,):
        _check_sum(turn)
    if conditions.by_examples:
        raise ValueError(
            "there is no account of privacy where cohorts are drawn by the clients' "
            "numbers of examples, which they reveal: draw them uniformly"
        )


def _check_sum(algorithm: Algorithm) -> None:
    if algorithm.sum_only is None:
        raise ValueError(
            f"{algorithm.name} does not declare whether its server needs only the sum "
            "of the uploads: set sum_only=True or sum_only=False in its Algorithm"
        )
    if not algorithm.sum_only:
        raise ValueError(
            f"{algorithm.name} has no account of privacy, as its server needs more "
            "than the sum of the uploads (sum_only=False): use another algorithm"
        )


def epsilon(
    privacy: Privacy, *, clients: int, cohort: int, rounds: int, delta: float
) -> float:
    """Epsilon at `delta` after the rounds of a sum; infinite without noise.

    Every round draws its cohort uniformly and without replacement (Wang et al. 2019,
    arXiv 1808.00087). The bound is that of `dp-accounting`'s Renyi accountant.

    Args:
      privacy: clip and noise.
      clients: the number of clients that may be drawn.
      cohort: the number of clients of a round.
      rounds: their number.
      delta: the probability that epsilon does not hold.

    Raises:
      ValueError: dp-accounting is not installed.
    """
    if privacy.noise == 0:
        return math.inf
    try:
        from dp_accounting import dp_event, privacy_accountant, rdp
    except ImportError:
        raise ValueError(
            "epsilon needs dp-accounting: pip install dp-accounting"
        ) from None
    event = dp_event.GaussianDpEvent(privacy.noise / 2)  # the sum moves by 2 clip
    if cohort < clients:
        event = dp_event.SampledWithoutReplacementDpEvent(clients, cohort, event)
    replaced = privacy_accountant.NeighboringRelation.REPLACE_ONE
    accountant = rdp.RdpAccountant(neighboring_relation=replaced)
    accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta))
