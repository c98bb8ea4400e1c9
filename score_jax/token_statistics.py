"""What a policy says of the tokens that were drawn from it, and the gradient of a loss of that: the head, in one pass.

The head is the dearest product, and its logits are the largest array. So it is applied to the hidden states that a
sampled token follows, to no others; to `chunk` of them at a time; and once: as soon as a chunk's statistics are known,
its derivatives go back through the same logits, which are then forgotten. No array of `[B, T, V]` exists, and nothing
is computed again.

That takes a loss whose derivatives by a token's statistics depend on those of later tokens alone, since chunks are
taken from the last to the first. So it is with the exact KL: what a token does to the KL still to come in its turn is
known when the token is reached. Where they depend on all tokens (the log-ratios in the reward), `first_pass` gathers
the statistics of all before, at the price of the policy's logits once more.

Letters: B rows, T tokens, G shards of the batch, M places for sampled tokens in a shard, m of a chunk, D width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from score_jax import model as lm
from score_jax.model.attention import capped
from score_jax.model.products import times
from score_jax.sharding import spread


@flax.struct.dataclass
class TokenStatistics:
    """For each token `[B, T]` what the distribution that it was drawn from says; 0 where a token was not sampled."""

    log_probs: jax.Array
    reference_log_probs: jax.Array  # the policy's own without a reference
    entropy: jax.Array
    kl: jax.Array  # KL(policy || reference) over the vocabulary; 0 without a reference


@jax.custom_vjp
def of_logits(logits, reference_logits, tokens) -> TokenStatistics:
    """Statistics `[...]` of `tokens [...]` under the softmax of `logits [..., V]`; no gradient into the reference.

    Args:
      reference_logits: `[..., V]`, or None.
    """
    return _of_logits(logits, reference_logits, tokens)[0]


def _of_logits(logits, reference_logits, tokens):
    def taken(z):
        return jnp.take_along_axis(z, tokens[..., None], axis=-1)[..., 0]

    highest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - highest)
    total = jnp.sum(weights, axis=-1)
    norm = highest[..., 0] + jnp.log(total)
    entropy = norm - jnp.sum(weights * logits, axis=-1) / total
    log_probs = taken(logits) - norm
    if reference_logits is None:
        stats = TokenStatistics(log_probs, log_probs, entropy, jnp.zeros_like(norm))
        return stats, (logits, None, tokens, norm, entropy)
    reference_norm = jax.nn.logsumexp(reference_logits, axis=-1)
    shift = jnp.sum(weights * (logits - reference_logits), axis=-1) / total  # the mean of the two logits' difference
    stats = TokenStatistics(
        log_probs, taken(reference_logits) - reference_norm, entropy, shift - norm + reference_norm)
    return stats, (logits, (reference_logits, shift), tokens, norm, entropy)


def _of_logits_back(kept, by: TokenStatistics):
    """By hand, so that it is one pass over the vocabulary, without another sum."""
    logits, reference, tokens, norm, entropy = kept
    by_log_probs = by.log_probs if reference else by.log_probs + by.reference_log_probs
    all_log_probs = logits - norm[..., None]
    slope = -by_log_probs[..., None] - by.entropy[..., None] * (all_log_probs + entropy[..., None])
    if reference:
        reference_logits, shift = reference
        slope += by.kl[..., None] * (logits - reference_logits - shift[..., None])
    here = tokens[..., None] == jnp.arange(logits.shape[-1])
    return jnp.exp(all_log_probs) * slope + jnp.where(here, by_log_probs[..., None], 0.0), None, None


of_logits.defvjp(_of_logits, _of_logits_back)


@flax.struct.dataclass
class Sampled:
    """The sampled tokens of each shard, in order of row and column; places that are left over come last.

    Attributes:
      hidden: `[G, M]`, which of the shard's hidden states the token follows.
      place: `[G, M]`, where it stands in the shard's tokens `[B / G * T]`; beyond them in places that are left over.
      token: `[G, M]`, its id.
      count: `[G]`.
    """

    hidden: jax.Array
    place: jax.Array
    token: jax.Array
    count: jax.Array

    @classmethod
    def find(cls, mask, hidden, tokens, shards: int, places: int) -> Sampled:
        """Of `tokens [B, T]` those under `mask [B, T]`, where the hidden state at a token is number `hidden [B, T]`."""
        mask = mask.at[:, 0].set(False)  # what is first follows nothing
        before = jnp.roll(hidden, 1, axis=1)
        mask, before, tokens = (x.reshape(shards, -1) for x in (mask, before, tokens))
        order = jnp.argsort(~mask, axis=1, stable=True)[:, :places]
        order = jnp.pad(order, [(0, 0), (0, places - order.shape[1])])
        count = jnp.sum(mask, axis=1)
        inside = jnp.arange(places) < count[:, None]
        of = jax.vmap(lambda x, where: x[where])
        return cls(
            hidden=jnp.where(inside, of(before, order), 0), place=jnp.where(inside, order, mask.shape[1]),
            token=of(tokens, order), count=count)


@dataclasses.dataclass(frozen=True)
class Head:
    """How the head is applied.

    Attributes:
      shards: of the batch, G.
      temperature: that of the sampler: learned is the distribution that was sampled from.
      chunk: sampled tokens of a shard that it is applied to at a time.
      trained: whether it is learned, and not that of a base which adapters stand beside.
    """

    model: lm.ModelConfig
    shards: int
    temperature: float
    chunk: int
    trained: bool = True

    def places(self, tokens: int) -> int:
        """M, for so many tokens of a shard."""
        chunk = min(self.chunk, tokens)
        return -(-tokens // chunk) * chunk

    def weights(self, params) -> jax.Array:
        """The head `[G, V, D]`, once a shard: so the gradients of shards meet in one sum, not in one for each chunk."""
        head = lm.head_weights(params)
        return spread(jnp.broadcast_to(head, (self.shards, *head.shape)), ('batch', 'vocab', None))

    def _logits(self, hidden, head):
        logits = jax.vmap(functools.partial(times, dtype=jnp.float32))(hidden, head.astype(hidden.dtype).mT)
        return capped(logits, self.model.logit_cap) / self.temperature

    def _statistics(self, hidden, heads, tokens) -> TokenStatistics:
        # One axis of tokens: XLA's CPU backend sums over the vocabulary twenty times slower behind an axis of size 1.
        logits, *reference = (
            self._logits(h, w).reshape(tokens.size, -1) for h, w in zip(hidden, heads, strict=True))
        stats = of_logits(logits, reference[0] if reference else None, tokens.reshape(-1))
        return jax.tree.map(lambda x: x.reshape(tokens.shape), stats)

    def read(self, hidden, heads, sampled: Sampled, width: int) -> TokenStatistics:
        """Statistics `[G, width]` of `sampled`, each at its place.

        Args:
          hidden: `[G, M, D]` of the policy, and of the reference where there is one: what each sampled token follows.
          heads: their `weights`.
        """
        def step(index, known):
            part, at = self._part(index, sampled)
            stats = self._statistics([at(h) for h in hidden], heads, part.token)
            return _set(known, part.place, stats)
        return jax.lax.fori_loop(0, self._chunks(sampled), step, _nothing(self.shards, width))

    def learn(
        self, hidden, heads, sampled: Sampled, width: int, derivatives: Callable[[TokenStatistics], TokenStatistics],
    ) -> tuple[TokenStatistics, jax.Array, jax.Array]:
        """The statistics as `read` has them, and the gradients by the policy's hidden states and by its head, which is
        0 where that is not trained.

        Args:
          derivatives: from statistics `[G, width]`, of which those of earlier tokens may still be 0, to the loss's
            derivatives by them; only those by later tokens, and by these here, are made use of.
        """
        chunks = self._chunks(sampled)

        def step(index, carry):
            known, by_hidden, by_head = carry
            part, at = self._part(chunks - 1 - index, sampled)
            stats, back = jax.vjp(
                lambda own, head: self._statistics([own, *map(at, hidden[1:])], [head, *heads[1:]], part.token),
                at(hidden[0]), heads[0])
            known = _set(known, part.place, stats)
            by = jax.tree.map(
                lambda x: jnp.take_along_axis(x, part.place, axis=1, mode='fill', fill_value=0.0), derivatives(known))
            by_own, by_weights = back(by)
            by_hidden = jax.lax.dynamic_update_slice_in_dim(
                by_hidden, by_own, (chunks - 1 - index) * part.token.shape[1], axis=1)
            return known, by_hidden, by_head + by_weights.astype(jnp.float32) if self.trained else by_head

        start = (
            _nothing(self.shards, width), jnp.zeros_like(hidden[0]), jnp.zeros_like(heads[0], dtype=jnp.float32))
        return jax.lax.fori_loop(0, chunks, step, start)

    def _chunks(self, sampled: Sampled):
        """As many as the fullest shard has; the others' are padded."""
        return -(-jnp.max(sampled.count) // min(self.chunk, sampled.token.shape[1]))

    def _part(self, index, sampled: Sampled):
        """Chunk number `index` of `sampled`, and what cuts it out of an array `[G, M, ...]`."""
        size = min(self.chunk, sampled.token.shape[1])

        def at(x):
            return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=1)
        return sampled.replace(**{name: at(getattr(sampled, name)) for name in ('hidden', 'place', 'token')}), at


def _nothing(shards: int, width: int) -> TokenStatistics:
    return TokenStatistics(*(jnp.zeros((shards, width), jnp.float32) for _ in range(4)))


def _set(known: TokenStatistics, place, stats: TokenStatistics) -> TokenStatistics:
    """`stats [G, m]` at `place [G, m]` of `known [G, width]`, within each shard."""
    write = jax.vmap(lambda x, place, y: x.at[place].set(y, mode='drop'))
    return jax.tree.map(lambda x, y: write(x, place, y), known, stats)
