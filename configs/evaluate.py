"""Evaluation of every stage in a workdir on held-out problems."""

from ml_collections import ConfigDict

from configs import common, models, tasks

# A look at the whole path in seconds, not a result.
PRESETS = {
    'smoke': {'problems': 100, 'batch': 100},
    # Everything that can be measured: it takes several times as long.
    'full': {'methods': ('base', 'self_refine', 'stage1', 'stage2'), 'attempts.turns': 10, 'scaling.samples': 64},
    'three_turns': {'turns': 3, 'methods': ('base', 'stage1', 'stage1b', 'stage2')},
    **tasks.EVALUATE_PRESETS, **models.EVALUATE_PRESETS}


def get_config(preset: str = '') -> ConfigDict:
    config = common.shared()
    config.kind = 'evaluate'  # what runs it, see score_jax/run.py
    config.stage = 'evaluation'  # the folder in the workdir
    config.methods = ('base', 'stage1', 'stage2')  # stages, or 'self_refine'; those without a checkpoint are left out
    config.temperatures = (1.0, 0.0)  # 0 is greedy
    config.turns = 2  # attempts at each problem
    config.split = 'test'  # of the task
    config.problems = 2000  # different problems of the split
    config.samples_per_problem = 1  # at temperatures above 0; more of them make intervals narrower, see metrics.py
    config.batch = 500  # problems sampled at a time
    config.samples = 200  # transcripts kept of each method and temperature
    config.rollout = common.sampling()
    config.self_refine = ConfigDict(dict(
        stage='base',  # that is asked for an answer, for feedback on it, and for a refined answer; nothing is trained
        feedback='',  # what asks for feedback; '' is the task's instruction
        refine='',  # what asks for the refined answer; '' is the task's instruction
    ))
    config.attempts = ConfigDict(dict(
        turns=0,  # attempts in a row at a problem, by stages trained on fewer; 0: none. Rows get as long as they need
        problems=500,  # the first so many of config.problems
        temperature=0.0,  # 0 is greedy
    ))
    config.scaling = ConfigDict(dict(
        samples=0,  # rollouts of each problem, for pass@k and votes of up to as many responses; 0: none
        problems=500,  # the first so many of config.problems
        temperature=0.7,  # the paper's, for votes
    ))
    return common.preset(config, PRESETS, preset)
