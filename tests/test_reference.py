"""The decoder against the reference implementation of its family, `transformers`' Llama.

`bash launch/test.sh --reference` compares with the library itself and checks that the golden file says the same;
the plain run compares with the golden file alone. `SCORE_JAX_WRITE_GOLDEN=1` beside `--reference` writes it anew.
"""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import model as lm

GOLDEN = Path(__file__).parent / 'golden' / 'llama.npz'
REFERENCE = 'SCORE_JAX_REFERENCE' in os.environ
TIED = [True, False]


def config(tied: bool) -> lm.ModelConfig:
    return lm.ModelConfig(
        vocab_size=48, width=32, layers=4, heads=4, kv_heads=2, head_dim=8, mlp=64, tied=tied, rope_base=1e4,
        norm_eps=1e-5, dtype='float32')


def random_params(tied: bool) -> dict:
    """Weights drawn by numpy, so that a golden file means the same on every version of jax; norms not 1."""
    rng = np.random.default_rng(7)
    return {
        name: rng.normal(1.0 if 'norm' in name else 0.0, 0.2, size).astype(np.float32)
        for name, size in sizes(config(tied)).items()}


def sizes(c: lm.ModelConfig) -> dict:
    flat = {f'layers/{k}': p.shape for k, p in lm.declare(c)['layers'].items()}
    return flat | {k: p.shape for k, p in lm.declare(c).items() if k != 'layers'}


def nested(flat: dict) -> dict:
    tree = {'layers': {}}
    for name, array in flat.items():
        *group, leaf = name.split('/')
        (tree['layers'] if group else tree)[leaf] = jnp.asarray(array)
    return tree


def ragged_tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 48, (3, 20)), np.array([20, 11, 1])


def ours(tied: bool) -> np.ndarray:
    tokens, _ = ragged_tokens()
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    params = nested(random_params(tied))
    hidden, _ = lm.forward(params, config(tied), jnp.asarray(tokens), jnp.asarray(positions))
    return np.asarray(lm.logits(params, config(tied), hidden))


def transformers_logits(tied: bool) -> np.ndarray:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    c = config(tied)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.width, num_hidden_layers=c.layers, num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads, head_dim=c.head_dim, intermediate_size=c.mlp, rms_norm_eps=c.norm_eps,
        rope_theta=c.rope_base, tie_word_embeddings=c.tied)).eval()
    p = random_params(tied)
    flat = {'model.embed_tokens.weight': p['embedding'], 'model.norm.weight': p['final_norm']}
    flat['lm_head.weight'] = p.get('head', p['embedding'])
    names = {'query': 'self_attn.q_proj', 'key': 'self_attn.k_proj', 'value': 'self_attn.v_proj',
             'gate': 'mlp.gate_proj', 'up': 'mlp.up_proj', 'down': 'mlp.down_proj'}
    for i in range(c.layers):
        layer = {k.removeprefix('layers/'): v[i] for k, v in p.items() if k.startswith('layers/')}
        prefix = f'model.layers.{i}.'
        for name, theirs in names.items():
            flat[f'{prefix}{theirs}.weight'] = layer[name].reshape(layer[name].shape[0], -1).T
        flat[f'{prefix}self_attn.o_proj.weight'] = layer['out'].reshape(-1, c.width).T
        flat[f'{prefix}input_layernorm.weight'] = layer['attention_norm']
        flat[f'{prefix}post_attention_layernorm.weight'] = layer['mlp_norm']
    model.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in flat.items()}, strict=True)
    tokens, lengths = ragged_tokens()
    mask = torch.tensor(np.arange(tokens.shape[1]) < lengths[:, None])
    with torch.no_grad():
        return model(torch.tensor(tokens), attention_mask=mask.long()).logits.numpy()


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    """Equal to 1e-4 of the largest logit on every token that is no padding."""
    tokens, lengths = ragged_tokens()
    valid = np.arange(tokens.shape[1]) < lengths[:, None]
    assert np.abs(a - b)[valid].max() < 1e-4 * np.abs(b[valid]).max()


@pytest.mark.parametrize('tied', TIED)
def test_logits_equal_the_golden_file(tied):
    with np.load(GOLDEN) as golden:
        assert_close(ours(tied), golden[f'tied={tied}'])


if REFERENCE:
    @pytest.mark.parametrize('tied', TIED)
    def test_logits_equal_transformers(tied):
        assert_close(ours(tied), transformers_logits(tied))

    def test_the_golden_file_is_what_transformers_says():
        reference = {f'tied={tied}': transformers_logits(tied) for tied in TIED}
        if 'SCORE_JAX_WRITE_GOLDEN' in os.environ:
            GOLDEN.parent.mkdir(exist_ok=True)
            np.savez_compressed(GOLDEN, **reference)
        with np.load(GOLDEN) as golden:
            for name, logits in reference.items():
                assert_close(golden[name], logits)
