import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.adapters import lora
from potara_jax.clients.answering import answered, of_answers, packed_loss
from potara_jax.data import tokens
from potara_jax.data.federation import Batch
from potara_jax.data.text import Example
from potara_jax.merging import ensemble
from potara_jax.models.decoding import greedy
from potara_jax.models.llama import Llama, LlamaConfig, Text, empty_cache

BYTES = tokens.of_bytes()
CONFIG = LlamaConfig(
    vocabulary=BYTES.size,
    width=16,
    hidden=24,
    depth=2,
    heads=2,
    key_heads=1,
    context=32,
)
MODEL = Llama(CONFIG)
TEXT = Text(jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 2), jnp.int32))
SITES = lora.find_sites(MODEL, TEXT, targets=("q_proj", "v_proj"))
APPLY = lora.bind(MODEL, scale=2.0)
EXAMPLES = [
    Example("ab", ("c", "dd", "e"), 1),
    Example("f", ("gg", "h"), 1),
    Example("i", ("j",), 0),
]


@pytest.fixture(scope="module")
def model():
    params = jax.jit(MODEL.init)(jax.random.key(0), TEXT)["params"]
    adapter = lora.init(jax.random.key(1), SITES, rank=2)
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)
    return params, jax.tree.map(noise, adapter)


def batch_of(examples):
    choices, _ = tokens.encode(examples, BYTES, context=32)
    rows = np.arange(len(examples))
    labels = choices.answers[rows, choices.gold]
    return jax.tree.map(jnp.asarray, Batch(choices, labels))


JITTED = jax.jit(APPLY)
LENGTH = 16


def log_likelihood(model, prompt, answer):
    """Token by token, of one sequence."""
    ids, total = [BYTES.begin, *BYTES.encode(prompt)], []
    for token in [*BYTES.encode(f" {answer}"), BYTES.end]:
        padded = np.pad(ids, (0, LENGTH - len(ids)))
        text = Text(jnp.array([padded]), jnp.array([[len(ids) - 1]]))
        total.append(float(jax.nn.log_softmax(JITTED(*model, text)[0, 0])[token]))
        ids.append(token)
    return total


@pytest.mark.parametrize("normalise", [False, True])
def test_losses_and_choices_are_those_of_one_sequence_at_a_time(model, normalise):
    task = of_answers(APPLY, normalise=normalise)
    batch = batch_of(EXAMPLES)
    loss, correct = jax.jit(task.judge)(*model, batch)
    np.testing.assert_allclose(jax.jit(task.loss)(*model, batch), loss, rtol=1e-5)
    for number, example in enumerate(EXAMPLES):
        found = [log_likelihood(model, example.prompt, o) for o in example.options]
        gold = -np.mean(found[example.gold])
        np.testing.assert_allclose(loss[number], gold, rtol=1e-5)
        score = np.mean if normalise else np.sum
        likely = int(np.argmax([score(each) for each in found]))
        if len(example.options) > 1:
            assert bool(correct[number]) == (likely == example.gold)


def test_one_option_is_right_where_greedy_decoding_writes_it(model):
    read = lambda *args: APPLY(*model, *args, method="read")
    prompt = jnp.array([[BYTES.begin, *BYTES.encode("i")]])
    cache = empty_cache(CONFIG, 1, 8)
    decode = jax.jit(lambda p: greedy(read, cache, p, jnp.array([2]), max_tokens=4))
    judge, batch = jax.jit(of_answers(APPLY).judge), batch_of([Example("i", ("jjj",))])
    found = batch.inputs.answers.at[0, 0, :4].set(decode(prompt)[0])
    written = found.at[0, 0, 4:].set(-1)
    for answers, right in ((written, 1), (written.at[0, 0, 2].add(1), 0)):
        inputs = batch.inputs._replace(answers=answers)
        assert judge(*model, Batch(inputs, answers[:, 0]))[1] == right


def test_longer_padding_changes_nothing(model):
    judge, batch = jax.jit(of_answers(APPLY).judge), batch_of(EXAMPLES)
    longer = lambda x, value: jnp.pad(
        x, [(0, 0)] * (x.ndim - 1) + [(0, 5)], constant_values=value
    )
    prompt, answers = batch.inputs.prompt, batch.inputs.answers
    inputs = batch.inputs._replace(
        prompt=longer(prompt, 0), answers=longer(answers, -1)
    )
    padded = Batch(inputs, longer(batch.labels, -1))
    for found, expected in zip(
        judge(*model, padded), judge(*model, batch), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_packed_rows_lose_what_their_texts_do(model):
    choices, _ = tokens.encode(EXAMPLES, BYTES, context=32)
    losses = jax.jit(of_answers(APPLY).loss)(*model, batch_of(EXAMPLES))
    rows = tokens.pack_texts(choices)
    found = jax.jit(packed_loss(APPLY))(*model, jax.tree.map(jnp.asarray, rows))
    asked = (batch_of(EXAMPLES).labels >= 0).sum(1)
    total = (found * (rows.answers >= 0).sum(1)).sum()
    assert len(rows.tokens) < len(EXAMPLES)
    np.testing.assert_allclose(total, (losses * asked).sum(), rtol=1e-5)


def test_the_ensemble_of_a_model_with_itself_is_the_model(model):
    base, adapter = model
    task, batch = of_answers(APPLY), batch_of(EXAMPLES)
    both = {"federated": adapter, "local": adapter, "weight": jnp.float32(0.5)}
    mixed = task.again(ensemble)
    expected = jax.jit(task.loss)(base, adapter, batch)
    found = jax.jit(mixed.loss)(base, both, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_adapters_of_scanned_layers_are_folded_and_differ_by_layer(model):
    base, adapter = model
    batch = batch_of(EXAMPLES[:1])
    text = answered(batch.inputs, batch.inputs.gold)
    folded = lora.fold(base, adapter, SITES, scale=2.0)
    np.testing.assert_allclose(
        JITTED(folded, {}, text), JITTED(base, adapter, text), atol=1e-5
    )
    swapped = jax.tree.map(lambda x: x[::-1], adapter)
    difference = JITTED(base, swapped, text) - JITTED(base, adapter, text)
    assert jnp.abs(difference).max() > 1e-3
