"""The workloads, in plain Python, so that every side reads the same: shapes, lengths, tokens, and their arithmetic.

Counted are 2 operations for each weight or key that a token meets, as often as the method needs it: nothing for
padding, for what is computed twice, or for an instruction's and prompt's logits.
"""

from __future__ import annotations

import dataclasses
import random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder of Qwen2's family, its head tied to the embedding."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    dtype: str = 'float32'

    @property
    def products(self) -> list[tuple[int, int]]:
        """Inner and outer size of a layer's products with weights: queries with keys and values, out, gate with up,
        down."""
        return [
            (self.width, (self.heads + 2 * self.kv_heads) * self.head_dim), (self.heads * self.head_dim, self.width),
            (self.width, 2 * self.mlp), (self.mlp, self.width)]

    @property
    def body(self) -> int:
        """Weights of all layers."""
        return self.layers * sum(inner * outer for inner, outer in self.products)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.width * self.vocab_size

    def attention(self, start: int, end: int) -> float:
        """Operations of attention by the tokens at positions `start` to `end` of a row."""
        return 4 * self.layers * self.heads * self.head_dim * (end - start) * (start + end + 1) / 2

    @property
    def cache_bytes(self) -> int:
        """Of one position of a row."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.item

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == 'float32' else 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Rows of `prompt` tokens, then turns of `longest` sampled ones, `instruction` others between two.

    Attributes:
      stops: whether rows end at lengths that lie evenly between 16 and `longest`, in random order; else none ends.
      head_chunk: sampled tokens that the learner's head works on at a time, as in the configs.
      parts: of the rows, whose gradients are added up one after another.
    """

    shape: Shape
    rows: int
    prompt: int
    longest: int
    turns: int = 2
    instruction: int = 16
    stops: bool = False
    head_chunk: int = 1024
    parts: int = 1

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.prompt + self.turns * self.longest + (self.turns - 1) * self.instruction

    @property
    def stop_at(self) -> list[int] | None:
        """By row, the length of its response; None where nothing ends."""
        if not self.stops:
            return None
        least = min(16, self.longest)
        each = [round(least + i * (self.longest - least) / max(self.rows - 1, 1)) for i in range(self.rows)]
        random.Random(0).shuffle(each)
        return each

    @property
    def sampled(self) -> int:
        """Tokens that are of use: those that no row samples after its end."""
        return sum(self.stop_at) if self.stops else self.rows * self.turns * self.longest

    def prompts(self) -> list[list[int]]:
        """Token ids."""
        source = random.Random(1)
        return [[source.randrange(self.shape.vocab_size) for _ in range(self.prompt)] for _ in range(self.rows)]

    def instructions(self) -> list[int]:
        """Token ids of what stands between two turns."""
        source = random.Random(2)
        return [source.randrange(self.shape.vocab_size) for _ in range(self.instruction)]

    def trajectories(self) -> list[list[int]]:
        """Token ids of whole rows, for the update."""
        source = random.Random(3)
        return [[source.randrange(self.shape.vocab_size) for _ in range(self.length)] for _ in range(self.rows)]

    def own(self) -> list[tuple[int, int]]:
        """By turn, the columns of a whole row that the model sampled."""
        starts = [self.prompt + turn * (self.longest + self.instruction) for turn in range(self.turns)]
        return [(start, start + self.longest) for start in starts]

    def correct(self) -> list[list[float]]:
        """By row and turn, verdicts."""
        source = random.Random(4)
        return [[float(source.random() < 0.5) for _ in range(self.turns)] for _ in range(self.rows)]


SMALL = Shape(vocab_size=32_768, width=512, layers=8, heads=8, kv_heads=2, head_dim=64, mlp=1536)
WIDE = dataclasses.replace(SMALL, vocab_size=151_936, width=256, layers=2, mlp=768)
QWEN = Shape(
    vocab_size=151_936, width=1536, layers=28, heads=12, kv_heads=2, head_dim=128, mlp=8960, dtype='bfloat16')
TINY = Shape(vocab_size=64, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24)

GPU = ('G1', 'G1-update', 'G1-step')
WORKLOADS = {
    'W1': Workload(shape=SMALL, rows=32, prompt=64, longest=128),
    'W2': Workload(shape=SMALL, rows=32, prompt=64, longest=128),
    'step': Workload(shape=SMALL, rows=32, prompt=64, longest=128),
    'devices': Workload(shape=SMALL, rows=32, prompt=64, longest=32),
    'W3': Workload(shape=SMALL, rows=64, prompt=32, longest=512, turns=1, instruction=0, stops=True),
    'memory': Workload(shape=WIDE, rows=8, prompt=256, longest=888),
    **dict.fromkeys(GPU, Workload(shape=QWEN, rows=256, prompt=256, longest=512, parts=32)),
}


def quick(workload: Workload) -> Workload:
    """The same in a second: to see that all of it runs."""
    return dataclasses.replace(
        workload, shape=dataclasses.replace(TINY, dtype=workload.shape.dtype), rows=8, prompt=8,
        longest=24 if workload.stops else 8, instruction=min(workload.instruction, 4), head_chunk=8,
        parts=min(workload.parts, 2))


def rollout_flops(work: Workload) -> dict[str, float]:
    """Operations of sampling: of `decode`, a token of each row at a time, and of `prefill`, many tokens at once."""
    shape, decode, prefill, attention = work.shape, 0, 0, 0.0
    for length in work.stop_at or [work.longest] * work.rows:
        decode += work.turns * length
        prefill += work.prompt + (work.turns - 1) * work.instruction
        attention += shape.attention(0, work.prompt + work.turns * length + (work.turns - 1) * work.instruction)
    return {
        'decode body': 2 * decode * shape.body, 'decode head': 2 * decode * shape.head,
        'prefill': 2 * prefill * shape.body + attention}


def rollout_bytes(work: Workload) -> float:
    """Bytes that sampling must read: all weights once for as many tokens as there are rows, and each row's cache."""
    shape, total = work.shape, 0.0
    for length in work.stop_at or [work.longest] * work.rows:
        for turn in range(work.turns):
            start = work.prompt + turn * (length + work.instruction)
            total += length * (start + length / 2) * shape.cache_bytes
    return total + work.sampled / work.rows * (shape.body + shape.head) * shape.item


def update_flops(work: Workload) -> dict[str, float]:
    """Operations of scoring and update: the reference forward, the policy forward and backward."""
    shape, tokens, sampled = work.shape, work.rows * work.length, work.rows * work.turns * work.longest
    attention = work.rows * shape.attention(0, work.length)
    forward = 2 * (tokens * shape.body + sampled * shape.head) + attention
    return {'forward': 3 * forward, 'weights': forward}  # two forward, one to the inputs; one to the weights
