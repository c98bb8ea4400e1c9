"""The decoder as pure functions over a parameter pytree."""

from score_jax.model.config import ModelConfig
from score_jax.model.params import Param, abstract, declare, draw, initialise, place, shardings
from score_jax.model.transformer import Adapted, Cache, forward, grow, head_weights, logits, new_cache

__all__ = [
    'Adapted', 'Cache', 'ModelConfig', 'Param', 'abstract', 'declare', 'draw', 'forward', 'grow', 'head_weights',
    'initialise', 'logits', 'new_cache', 'place', 'shardings',
]
