"""The decoder against the reference implementation of each family, `transformers`.

`bash launch/test.sh --reference` compares with the library itself and checks that the golden files say the same;
the plain run compares with the golden files alone. `SCORE_JAX_WRITE_GOLDEN=1` beside `--reference` writes them anew.
The library reads what `hf.save` writes, so an export is tested with it; what it writes itself, `hf.load` reads.
"""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_configs import CONFIGS, TYPES
from helpers import mesh_of

from score_jax import hf
from score_jax import model as lm

GOLDEN = Path(__file__).parent / 'golden'
REFERENCE = 'SCORE_JAX_REFERENCE' in os.environ
LENGTHS = np.array([10, 6, 1])
NEW = 64  # tokens generated
every_config = pytest.mark.parametrize('name', CONFIGS)


def prompts() -> np.ndarray:
    """`[3, 10]` tokens, those from `LENGTHS` on are padding."""
    return np.random.default_rng(3).integers(0, 40, (3, LENGTHS.max()))


def random_params(config: lm.ModelConfig) -> dict:
    """Weights drawn by numpy, so that a golden file means the same on every version of jax; norms not 1.

    Embeddings that will be scaled are small, else the likeliest token would always be the last one again.
    """
    rng = np.random.default_rng(7)
    declared, treedef = jax.tree.flatten(lm.declare(config), is_leaf=lambda x: hasattr(x, 'stddev'))
    params = treedef.unflatten([rng.normal(p.constant, 0.3, p.shape).astype(np.float32) for p in declared])
    if config.scaled_embedding:
        params['embedding'] *= np.float32(0.2)
    return params


@functools.partial(jax.jit, static_argnums=1)
def forward(params, config: lm.ModelConfig, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return lm.logits(params, config, lm.forward(params, config, tokens, positions)[0])


@functools.partial(jax.jit, static_argnums=1)
def generate(params, config: lm.ModelConfig, tokens, lengths):
    """The `NEW` likeliest tokens behind each row, one by one with a cache; `[3, NEW]`."""
    rows = jnp.arange(len(tokens))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    params = lm.one_by_one(params, config, joined=True)
    cache = lm.new_caches(config, len(tokens), tokens.shape[1] + NEW)
    hidden, cache = lm.forward(params, config, tokens, positions, cache)

    def step(carry, _):
        hidden, cache, at = carry
        token = jnp.argmax(lm.logits(params, config, hidden), axis=-1)
        hidden, cache = lm.forward(params, config, token[:, None], at[:, None], cache)
        return (hidden[:, 0], cache, at + 1), token

    return jax.lax.scan(step, (hidden[rows, lengths - 1], cache, lengths), None, length=NEW)[1].T


@functools.cache
def ours(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[17, V]` of all prompt tokens, and the generations `[3, NEW]`, which need no cache."""
    config, tokens = CONFIGS[name], prompts()
    params = random_params(config)
    generated = np.asarray(generate(params, config, tokens, LENGTHS))
    rows = np.zeros((3, LENGTHS.max() + NEW), int)
    for row, length, prompt, new in zip(rows, LENGTHS, tokens, generated):
        row[:length + NEW] = [*prompt[:length], *new]
    logits = np.asarray(forward(params, config, rows))
    for row, length, new in zip(logits, LENGTHS, generated):
        np.testing.assert_array_equal(row[length - 1:length - 1 + NEW].argmax(-1), new)
    return np.concatenate([row[:length] for row, length in zip(logits, LENGTHS)]), generated


def theirs(model) -> tuple[np.ndarray, np.ndarray]:
    """The same of a model of `transformers`; its `generate` wants the padding in front."""
    import torch
    tokens = torch.tensor(prompts())
    mask = torch.tensor(np.arange(tokens.shape[1]) < LENGTHS[:, None]).long()
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask).logits.numpy()
        shifted = torch.stack([row.roll(int(-length)) for row, length in zip(tokens, LENGTHS)])
        generated = model.generate(
            shifted, attention_mask=mask.flip(1), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW,
            eos_token_id=None, pad_token_id=0)
    return np.concatenate([row[:n] for row, n in zip(logits, LENGTHS)]), generated[:, tokens.shape[1]:].numpy()


def assert_equal(a, b) -> None:
    """Logits equal to 1e-4 of the largest, and the same tokens generated."""
    assert np.abs(a[0] - b[0]).max() < 1e-4 * np.abs(b[0]).max()
    np.testing.assert_array_equal(a[1], b[1])


def golden(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(GOLDEN / f'{name}.npz') as file:
        return file['logits'], file['generated']


@every_config
def test_logits_and_greedy_generations_equal_the_golden_file(name):
    assert_equal(ours(name), golden(name))


if REFERENCE:
    @pytest.fixture(scope='module')
    def reference(tmp_path_factory):
        """A function from a name to the model of `transformers` that our export of it is."""
        import transformers
        transformers.logging.disable_progress_bar()

        @functools.cache
        def load(name: str):
            directory = tmp_path_factory.mktemp('export') / 'model'
            hf.save(directory, CONFIGS[name], jax.tree.map(jnp.asarray, random_params(CONFIGS[name])))
            loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
                directory, output_loading_info=True, attn_implementation='eager')
            assert not any(info.values()), info  # no tensor is missing, left over or of another shape
            return loaded.eval()
        return load

    @pytest.fixture(scope='module')
    def said(reference):
        """A function from a name to what that model says."""
        return functools.cache(lambda name: theirs(reference(name)))

    @every_config
    def test_our_export_is_a_model_of_its_family_with_the_same_logits_and_generations(name, reference, said):
        assert reference(name).config.model_type == TYPES[name.split('-')[0]]
        assert_equal(ours(name), said(name))

    @every_config
    def test_what_transformers_writes_is_read_to_the_bit(name, reference, tmp_path):
        reference(name).save_pretrained(tmp_path, max_shard_size='20KB')
        assert len(list(tmp_path.glob('*.safetensors'))) > 1
        config, params = hf.load(tmp_path, mesh_of(1, 1, 1))
        assert config == CONFIGS[name]
        jax.tree.map(np.testing.assert_array_equal, params, random_params(config))

    @every_config
    def test_the_golden_file_is_what_transformers_says(name, said):
        logits, generated = said(name)
        if 'SCORE_JAX_WRITE_GOLDEN' in os.environ:
            GOLDEN.mkdir(exist_ok=True)
            np.savez_compressed(GOLDEN / f'{name}.npz', logits=logits, generated=generated.astype(np.uint8))
        assert_equal(golden(name), (logits, generated))
