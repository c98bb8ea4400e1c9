"""The shape of a decoder, and what sets one family apart from another."""

from __future__ import annotations

import dataclasses

from score_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A pre-norm decoder: RMSNorm, RoPE, grouped-query attention, gated MLP.

    Values come from `config.model`; `configs/common.py` says what each one means. Those with a default here are the
    facts of a family, and the default is that of a plain Llama; `score_jax/model/families.py` has the other families.
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
    activation: str = 'silu'
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    centered_norms: bool = False
    scaled_embedding: bool = False
    query_scalar: int = 0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    window: int = 0
    global_every: int = 1
    local_rope_base: float = 0.0
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_length: int = 8192

    def __post_init__(self):
        for name in ('vocab_size', 'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp', 'global_every'):
            if getattr(self, name) < 1:
                raise UserError(f'config.model.{name} is {getattr(self, name)}; it must be at least 1.')
        for name in ('query_scalar', 'attention_cap', 'logit_cap', 'window', 'local_rope_base'):
            if getattr(self, name) < 0:
                raise UserError(f'config.model.{name} is {getattr(self, name)}; it must be positive, or 0 for none.')
        if self.heads % self.kv_heads:
            raise UserError(
                f'config.model.heads is {self.heads}, which is not a multiple of '
                f'config.model.kv_heads = {self.kv_heads}; each KV head serves heads / kv_heads query heads.')
        if self.head_dim % 2:
            raise UserError(f'config.model.head_dim is {self.head_dim}; rotary embeddings need an even number.')
        if self.dtype not in ('float32', 'bfloat16'):
            raise UserError(f"config.model.dtype is {self.dtype!r}; it must be 'float32' or 'bfloat16'.")
        if self.activation not in ('silu', 'gelu'):
            raise UserError(f"config.model.activation is {self.activation!r}; it must be 'silu' or 'gelu'.")
        if bool(self.window) != (self.global_every > 1) or (self.local_rope_base and not self.window):
            raise UserError(
                f'config.model has window = {self.window}, global_every = {self.global_every} and local_rope_base = '
                f'{self.local_rope_base}; local layers need a window and a global_every above 1, and without them '
                'the three are 0, 1 and 0.')
        if self.rope_factor < 1 or not 0 < self.rope_low < self.rope_high or self.rope_length < 1:
            raise UserError(
                f'config.model has rope_factor = {self.rope_factor}, rope_low = {self.rope_low}, rope_high = '
                f'{self.rope_high}, rope_length = {self.rope_length}; the factor must be at least 1 (1: no scaling), '
                'rope_low positive and below rope_high, the length positive.')

    @property
    def local(self) -> tuple[bool, ...]:
        """For each layer whether it is local: it sees `window` positions, its own included. Empty without a window."""
        return tuple((i + 1) % self.global_every != 0 for i in range(self.layers)) if self.window else ()
