"""What a server keeps on disk, without Flower."""

import jax
import numpy as np
import pytest

from potara_jax.federated.privacy import Privacy
from potara_jax.federated.wire import Wire
from potara_jax.flower import past, server
from tests.flower.federations import deployed
from tests.helpers_federated import assert_equal


def after_two_rounds(deployment):
    first = past.begin(deployment)
    moved = jax.tree.map(lambda x: x + 1, first.state.server)
    changed = dict.fromkeys(first.state.changed, 2)
    state = server.State(moved, changed, {3: 1, 0: 0})
    trained = {1: {"train-loss": float("nan"), "arrived": 0}, 2: {"arrived": 2}}
    return first._replace(state=state, rounds=2, counts={0: 4, 3: 1}, trained=trained)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path):
    deployment = deployed("fedit", wire=Wire(None, Privacy(1, 1)))
    file = past.File(tmp_path / "new" / "server.npz", deployment, {"rate": 0.1})
    assert past.load(file) is None
    kept = after_two_rounds(deployment)
    past.save(file, kept)
    loaded = past.load(file)
    assert_equal(loaded.state.server, kept.state.server)
    assert_equal(jax.random.key_data(loaded.secret), jax.random.key_data(kept.secret))
    other = past.begin(deployment)
    assert other.federation != kept.federation
    assert not np.array_equal(*map(jax.random.key_data, (other.secret, kept.secret)))
    rest = lambda x: str(x._replace(state=x.state[1:], secret=None))
    assert rest(loaded) == rest(kept)
    assert file.path.stat().st_mode & 0o777 == 0o600  # it has the key of the noise
    assert [path.name for path in file.path.parent.iterdir()] == ["server.npz"]


def test_a_file_of_another_federation_or_a_damaged_one_is_named(tmp_path):
    file = past.File(tmp_path / "server.npz", deployed("fedit"), {"rate": 0.1})
    past.save(file, past.begin(deployed("fedit")))
    line = "whose algorithm is 'FedIT', not 'FedSA-LoRA': name another folder"
    with pytest.raises(ValueError, match=line):
        past.load(file._replace(deployment=deployed("fedsa")))
    private = deployed("fedit", wire=Wire(None, Privacy(1, 1)))
    with pytest.raises(ValueError, match="of another federation, whose wire"):
        past.load(file._replace(deployment=private))
    with pytest.raises(ValueError, match=r"settings\.rate is 0\.1, not 0\.2"):
        past.load(file._replace(settings={"rate": 0.2}))
    file.path.write_bytes(file.path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged: remove it"):
        past.load(file)
