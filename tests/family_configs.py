"""A small model of each family with everything on that it has: windows shorter than the sequence, caps, biases."""

import dataclasses

from score_jax import model as lm

_SIZES = dict(
    vocab_size=40, width=32, layers=4, heads=4, kv_heads=2, head_dim=8, mlp=48, rope_base=1e4, norm_eps=1e-5,
    dtype='float32')
_GEMMA = dict(
    activation='gelu', post_norms=True, centered_norms=True, scaled_embedding=True, query_scalar=12, window=4)
_FACTS = {
    'llama': {},
    'llama3': dict(rope_factor=8.0, rope_low=1.0, rope_high=4.0, rope_length=64),
    'qwen2': dict(qkv_bias=True),
    'qwen3': dict(qk_norm=True, head_dim=16),
    'gemma2': _GEMMA | dict(global_every=2, attention_cap=5.0, logit_cap=4.0),
    'gemma3': _GEMMA | dict(global_every=6, layers=7, qk_norm=True, rope_base=1e5, local_rope_base=100.0),
}
CONFIGS = {
    f'{name}-{"tied" if tied else "untied"}': lm.ModelConfig(**_SIZES | facts | dict(tied=tied))
    for name, facts in _FACTS.items() for tied in (True, False)}
TYPES = {
    'llama': 'llama', 'llama3': 'llama', 'qwen2': 'qwen2', 'qwen3': 'qwen3', 'gemma2': 'gemma2',
    'gemma3': 'gemma3_text'}


def varied(name: str, **changes) -> lm.ModelConfig:
    return dataclasses.replace(CONFIGS[name], **changes)
