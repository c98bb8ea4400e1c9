"""What a rollout hands on: the one pytree that rewards, objective and learner read.

    column      0 1 2 3 4 5 6 7 8 9
    tokens      P P P a b E i i c E .     E: end of the response, part of it
    turn        0 0 0 1 1 1 0 0 2 2 0     0: not the model's own (prompt, instruction, padding)

Masks come from `turn` and `length` and from nowhere else; no token id means padding.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Trajectory:
    """B rows of T columns, N turns. Row `(p * K1 + i) * K2 + j` is the j-th second attempt on the
    i-th first attempt at problem p.

    Attributes:
      tokens: `[B, T]` int32, each row without gaps.
      turn: `[B, T]` int32, 0 where the token is not the model's own, else 1..N; -t for a response of turn t that was
        given and not sampled, which is a prompt to what follows.
      log_probs: `[B, T]` float32, log-probability of each token when it was sampled; 0 where turn is 0.
      length: `[B]` int32, tokens of the row.
      truncated: `[B, N]` bool, the turn ended at its token limit without an end token.
    """

    tokens: jax.Array
    turn: jax.Array
    log_probs: jax.Array
    length: jax.Array
    truncated: jax.Array

    @property
    def turns(self) -> int:
        """N, attempts at each problem."""
        return self.truncated.shape[1]

    def mask(self, turn: int):
        """`[B, T]` float32: 1 on the tokens of that turn (1..N)."""
        return (self.turn == turn).astype(jnp.float32)


def turn_ends(trajectory: Trajectory) -> list:
    """By turn, the column behind each row's response, `[B]`: where the next instruction starts."""
    columns = jnp.arange(1, trajectory.tokens.shape[1] + 1)
    own = jnp.abs(trajectory.turn)
    return [jnp.max(jnp.where(own == t + 1, columns, 0), axis=1) for t in range(trajectory.turns)]
