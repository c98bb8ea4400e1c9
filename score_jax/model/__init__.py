"""The decoder as pure functions over a parameter pytree."""

from score_jax.model.attention import UNSEEN
from score_jax.model.config import ModelConfig
from score_jax.model.params import Param, abstract, declare, draw, initialise, place, shardings
from score_jax.model.products import Adapted
from score_jax.model.transformer import (
    REMAT, Cache, Prefix, fetch_all_but_layers, forward, grow, head_weights, logits, new_caches, no_prefix,
    one_by_one)

__all__ = [
    'REMAT', 'UNSEEN', 'Adapted', 'Cache', 'ModelConfig', 'Param', 'Prefix', 'abstract', 'declare', 'draw',
    'fetch_all_but_layers', 'forward', 'grow', 'head_weights', 'initialise', 'logits', 'new_caches', 'no_prefix',
    'one_by_one', 'place', 'shardings',
]
