"""Checkpoints of Llamas, and the settings that suit them."""

import pytest

from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import ClientContents
from potara_jax.experiment.problems import language
from potara_jax.experiment.settings import Lora, Merging
from tests import small


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small.language_model(folder / "llama")
    return folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"eos_token_id": None}, "cannot be understood|special token None"),
        ({"eos_token_id": 9999}, "a special token 9999, but 288 tokens"),
        ({"vocab_size": ...}, "config.json has no 'vocab_size'"),
        ({"num_attention_heads": ...}, "has no 'num_attention_heads'"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_named(change, reason, models, tmp_path):
    folder = small.with_config(models / "llama", tmp_path / "llama", change)
    with pytest.raises(ValueError, match=reason):
        language.loaded(str(folder))


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({"merging": Merging(curvature="exact")}, "merging.curvature is exact"),
        ({"lora": Lora(whole=("lm_head",))}, "lora.whole is lm_head: it must be empty"),
        ({"lora": Lora(targets=("query",))}, "query"),
        ({"lora": Lora(targets=("q_proj",), rank=999)}, "rank 999 does not fit"),
    ],
)
def test_settings_that_do_not_suit_a_llama_are_refused(groups, reason, models):
    groups = {"merging": Merging(curvature="sampled")} | groups
    experiment = Experiment("", lambda *_: None, **groups)
    model = language.loaded(str(models / "llama"))
    unread = model._replace(read=lambda: pytest.fail("it was read too early"))
    with pytest.raises(ValueError, match=reason):
        language.problem(experiment, unread, {}, ClientContents())
