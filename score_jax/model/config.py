"""The shape of a decoder."""

from __future__ import annotations

import dataclasses

from score_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A pre-norm decoder: RMSNorm, RoPE, grouped-query attention, gated MLP.

    Values come from `config.model`; `configs/common.py` says what each one means.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    tied: bool
    rope_base: float
    norm_eps: float
    dtype: str

    def __post_init__(self):
        for name in ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp'):
            if getattr(self, name) < 1:
                raise UserError(f'config.model.{name} is {getattr(self, name)}; it must be at least 1.')
        if self.heads % self.kv_heads:
            raise UserError(
                f'config.model.heads is {self.heads}, which is not a multiple of '
                f'config.model.kv_heads = {self.kv_heads}; each KV head serves heads / kv_heads query heads.')
        if self.head_dim % 2:
            raise UserError(f'config.model.head_dim is {self.head_dim}; rotary embeddings need an even number.')
        if self.dtype not in ('float32', 'bfloat16'):
            raise UserError(f"config.model.dtype is {self.dtype!r}; it must be 'float32' or 'bfloat16'.")
