"""Evaluation of every stage in a workdir on held-out problems."""

from ml_collections import ConfigDict

from configs import common, tasks

# A look at the whole path in seconds, not a result.
PRESETS = {
    'smoke': {'problems': 100, 'batch': 100},
    'three_turns': {'turns': 3, 'methods': ('base', 'stage1', 'stage1b', 'stage2')},
    **tasks.EVALUATE_PRESETS}


def get_config(preset: str = '') -> ConfigDict:
    config = common.shared()
    config.kind = 'evaluate'  # what runs it, see score_jax/run.py
    config.stage = 'evaluation'  # the folder in the workdir
    config.methods = ('base', 'stage1', 'stage2')  # stages to measure; those without a checkpoint are left out
    config.temperatures = (1.0, 0.0)  # 0 is greedy
    config.turns = 2  # attempts at each problem
    config.split = 'test'  # of the task
    config.problems = 2000  # different problems of the split
    config.samples_per_problem = 1  # at temperatures above 0; more of them make intervals narrower, see metrics.py
    config.batch = 500  # problems sampled at a time
    config.samples = 200  # transcripts kept of each method and temperature
    config.rollout = common.sampling()
    return common.preset(config, PRESETS, preset)
