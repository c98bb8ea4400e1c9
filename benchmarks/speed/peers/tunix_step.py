"""Tunix: its sampler, and the update of its GRPO learner.

Its sampler takes strings and starts each call with an empty cache, so turn 2 reads turn 1 again; each turn has a cache
that is as long as that turn needs. It has no way to end rows at given lengths: where they end, it samples as long as
it would wait for the longest, and the tokens of use are counted. The update is that of its GRPO learner:
log-probabilities of the reference by its own function, then a step of its trainer on its GRPO loss with the KL on.
"""

from __future__ import annotations

import jax
import numpy as np
import optax
from tunix.generate import sampler
from tunix.models.qwen2 import model, params
from tunix.rl import common, function_registry, trainer
from tunix.rl.grpo import grpo_learner
from tunix.sft import peft_trainer

from benchmarks.speed import compiling, worker
from benchmarks.speed.workloads import Workload


class Words:
    """A tokenizer with a word for every token; what pads and ends is a token that the model does not have."""

    def __init__(self, vocab: int):
        self.vocab = vocab

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return ' '.join(map(str, ids))

    def bos_id(self):
        return None

    def eos_id(self) -> int:
        return self.vocab

    def pad_id(self) -> int:
        return self.vocab


def load(found, work: Workload, dtype: str):
    """The model of the exchanged weights."""
    shape = work.shape
    config = model.ModelConfig(
        num_layers=shape.layers, vocab_size=shape.vocab_size, embed_dim=shape.width, hidden_dim=shape.mlp,
        num_heads=shape.heads, head_dim=shape.head_dim, num_kv_heads=shape.kv_heads, rope_theta=1_000_000,
        norm_eps=1e-6, use_tied_embedding=True, dtype=dtype, param_dtype=dtype)
    mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return params.create_model_from_safe_tensors(str(found.folder), config, mesh, dtype=jax.numpy.dtype(dtype))


def sampling(found, work: Workload):
    """A repetition of the rollout; seconds and tokens by turn."""
    shape, clock, words = work.shape, worker.CLOCKS[found.clock], Words(work.shape.vocab_size)
    policy = load(found, work, shape.dtype)
    lengths = [work.prompt + turn * (work.longest + work.instruction) for turn in range(work.turns)]
    samplers = [
        sampler.Sampler(policy, words, sampler.CacheConfig(
            cache_size=length + work.longest, num_layers=shape.layers, num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim)) for length in lengths]
    seeds = iter(range(10**9))

    def once() -> dict:
        texts, times = [words.decode(prompt) for prompt in work.prompts()], [clock()]
        for sample, length in zip(samplers, lengths):
            if length > work.prompt:
                texts = [f'{text} {words.decode(work.instructions())}' for text in texts]
            found = sample(
                texts, max_generation_steps=work.longest, max_prompt_length=length, temperature=1.0, top_p=1.0,
                seed=next(seeds), eos_tokens=[words.eos_id()])
            assert all(len(tokens) == work.longest for tokens in found.tokens)
            texts = [f'{text} {new}' for text, new in zip(texts, found.text)]
            times.append(clock())
        return {'tokens': work.sampled, 'turns': np.diff(times).tolist()}
    return once


def updating(found, work: Workload):
    """A repetition of scoring and update."""
    policy, reference = load(found, work, 'float32'), load(found, work, 'float32')
    algorithm = grpo_learner.GRPOConfig(num_generations=4, beta=0.1)
    algorithm.temperature = 1.0
    loss, nothing = function_registry.get_policy_loss_fn('grpo'), work.shape.vocab_size
    learner = trainer.Trainer(
        policy, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-5, 0.9, 0.99)),
        peft_trainer.TrainingConfig(eval_every_n_steps=10**9), lambda: {})
    learner.is_managed_externally = True
    learner.with_loss_fn(lambda model, train_example, algo_config: loss(
        model, train_example, algo_config=algorithm, pad_id=nothing, eos_id=nothing), has_aux=True)
    learner.with_gen_model_input_fn(lambda x: {'train_example': x, 'algo_config': algorithm})
    tokens = np.array(work.trajectories(), np.int32)
    prompts, completions = jax.numpy.asarray(tokens[:, :work.prompt]), jax.numpy.asarray(tokens[:, work.prompt:])
    mask = np.zeros(completions.shape, bool)
    for start, end in work.own():
        mask[:, start - work.prompt:end - work.prompt] = True
    rewards = np.array(work.correct(), np.float32).sum(1)
    graph, state = jax.tree.map(lambda x: x, trainer.nnx.split(reference))

    def once() -> dict:
        scores = common.compute_per_token_logps(graph, state, prompts, completions, nothing, nothing)
        learner.train([common.TrainExample(
            prompt_ids=prompts, prompt_mask=jax.numpy.ones(prompts.shape, bool), completion_ids=completions,
            completion_mask=jax.numpy.asarray(mask), advantages=jax.numpy.asarray(rewards - rewards.mean()),
            ref_per_token_logps=scores, old_per_token_logps=None)], None, False)
        jax.block_until_ready(jax.tree.leaves(trainer.nnx.state(policy)))
        return {'loss': float(np.asarray(learner._prev_buffered_train_metrics.losses[0]))}

    def warm() -> dict:  # its step is compiled twice: the optimiser's state comes back with other shardings
        once()
        return once()
    return once, warm


if __name__ == '__main__':
    FOUND = worker.job()
    WORK = worker.workload(FOUND)
    if FOUND.variant == 'sample':
        worker.serve(FOUND, compiling.counted(sampling(FOUND, WORK)))
    else:
        worker.serve(FOUND, *map(compiling.counted, updating(FOUND, WORK)))
