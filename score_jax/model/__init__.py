"""The decoder as pure functions over a parameter pytree."""

from score_jax.model.config import ModelConfig
from score_jax.model.params import abstract, declare, initialise, shardings
from score_jax.model.transformer import Cache, forward, grow, head_weights, logits, new_cache

__all__ = [
    'Cache', 'ModelConfig', 'abstract', 'declare', 'forward', 'grow', 'head_weights', 'initialise',
    'logits', 'new_cache', 'shardings',
]
