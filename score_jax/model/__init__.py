"""The decoder as pure functions over a parameter pytree."""

from score_jax.model.config import ModelConfig
from score_jax.model.params import Param, abstract, declare, draw, initialise, place, shardings
from score_jax.model.transformer import (
    REMAT, Adapted, Cache, fetch_all_but_layers, forward, grow, head_weights, logits, new_cache, one_by_one, stacked)

__all__ = [
    'REMAT', 'Adapted', 'Cache', 'ModelConfig', 'Param', 'abstract', 'declare', 'draw', 'fetch_all_but_layers',
    'forward', 'grow', 'head_weights', 'initialise', 'logits', 'new_cache', 'one_by_one', 'place', 'shardings',
    'stacked',
]
