"""The shapes of published models: the layout of a stage where neither model nor data set has been fetched yet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from score_jax import objective, plan, rollout, settings, train
from score_jax.model import ModelConfig, families
from score_jax.plan import Work
from score_jax.reinforce import ReinforceConfig

# Of their config.json on https://huggingface.co.
_KEYS = (
    'model_type', 'num_hidden_layers', 'hidden_size', 'num_attention_heads', 'num_key_value_heads', 'head_dim',
    'intermediate_size', 'vocab_size', 'tie_word_embeddings')
_SHAPES = {  # by how the name of the directory begins
    'gemma-2-2b': ('gemma2', 26, 2304, 8, 4, 256, 9216, 256_000, True),
    'gemma-2-9b': ('gemma2', 42, 3584, 16, 8, 256, 14336, 256_000, True),
    'gemma-2-27b': ('gemma2', 46, 4608, 32, 16, 128, 36864, 256_000, True),
    'gemma-3-270m': ('gemma3_text', 18, 640, 4, 1, 256, 2048, 262_144, True),
    'qwen2.5-0.5b': ('qwen2', 24, 896, 14, 2, 64, 4864, 151_936, True),
    'qwen2.5-1.5b': ('qwen2', 28, 1536, 12, 2, 128, 8960, 151_936, True),
    'qwen2.5-coder-1.5b': ('qwen2', 28, 1536, 12, 2, 128, 8960, 151_936, True),
    'qwen2.5-7b': ('qwen2', 28, 3584, 28, 4, 128, 18944, 152_064, False),
    'llama-3.1-8b': ('llama', 32, 4096, 32, 8, 128, 14336, 128_256, False),
}


def model(pretrained: str, dtype: str) -> ModelConfig | None:
    """The shape of the model that a directory which is not there is named after; None where no such is known."""
    directory = Path(pretrained).expanduser()
    name = next((name for name in _SHAPES if directory.name.lower().startswith(name)), None)
    if not pretrained or directory.is_dir() or not name:
        return None
    return families.from_json(dict(zip(_KEYS, _SHAPES[name])), dtype)


def work(section) -> Work | None:
    """A step at its longest of a stage whose model is known by name alone: rows as long as its config allows.

    Its prompts are `task.max_prompt` long, and instructions take what `rollout.max_length` leaves them. None where the
    files are there, or the name says nothing.

    Raises:
      UserError: as the stage itself would.
    """
    shape = model(section.get('pretrained', ''), section.model.dtype)
    if shape is None:
        return None
    config = settings.read(ReinforceConfig, section)
    sampling, prompt = config.rollout, config.task['max_prompt']
    found = Work(
        learner=train.make_learner(config, shape, config.lora if config.lora.rank else None),
        sampler=rollout.RolloutConfig(
            turns=config.turns, max_tokens=sampling.max_tokens, max_length=sampling.max_length, chunk=sampling.chunk,
            temperature=config.temperature, end_tokens=(1,), pad_token=0),
        objective=objective.read(config.objective, config.turns), forks=config.group.forks(config.turns),
        batch=config.batch, prompt=prompt,
        instruction=(sampling.max_length - prompt - config.turns * sampling.max_tokens) // max(1, config.turns - 1),
        reference_on_host=config.reference_on_host)
    return dataclasses.replace(found, learner=plan.fitted(found, config.memory, config.mesh.name))
