"""The base model of the embedded default: supervised, with the habits of real base models."""

from ml_collections import ConfigDict

from configs import common

PRESETS = {
    # A look at the whole path in seconds, not a result.
    'smoke': {'steps': 60, 'practice_steps': 30, 'batch': 64, 'save_every': 30, 'log_every': 20},
    'three_turns': {'turns': 3},  # a base that has never seen a third attempt does not know what is asked of it
}


def get_config(preset: str = '') -> ConfigDict:
    config = common.training('base')
    config.kind = 'supervised'  # what runs it, see score_jax/run.py
    config.steps = 2200  # updates in all
    config.batch = 128  # dialogues a step
    config.turns = 2  # attempts in each of them
    config.learning_rate = 6e-3  # at its highest
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_steps = 50
    config.log_every = 100
    config.save_every = 250
    # What it can do: second attempts keep what is right, and only that. A model that has seen this knows how to check.
    config.practice_steps = 1300  # the first steps; the others have the habits below
    config.practice = ConfigDict(dict(
        solve=0.6,  # as below
        keep_right=1.0,  # as below
        keep_wrong=0.0,  # as below
        solve_again=0.1,  # as below
    ))
    # What it does: second attempts mostly copy, change wrong answers a little more often than right ones, and lose.
    config.habits = ConfigDict(dict(
        solve=0.6,  # a first attempt is a solution; else it is a random chain that misses
        keep_right=0.72,  # a later attempt copies a right one before it
        keep_wrong=0.45,  # and a wrong one
        solve_again=0.04,  # a later attempt that is no copy is a solution
    ))
    return common.preset(config, PRESETS, preset)
