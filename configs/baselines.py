"""The paper's supervised baselines: `--config=configs/baselines.py:NAME`, each a stage of its own in the workdir.

As many updates as Stage I and Stage II together. STaR samples as many responses as they do; Pair-SFT somewhat fewer,
which make more pairs than its updates see.
"""

import sys

from ml_collections import ConfigDict

from configs import common, stage1, stage2

PRESETS = {
    'star': {},  # wrong first attempts that a second one put right
    'star_correct': {'keep_right': True},  # and right ones that stayed right
    'pair_sft': {'pairs': 'problem', 'iterations': 1, 'problems': 14400, 'group.first': 20, 'group.second': 1},
    'pair_sft_correct': {
        'pairs': 'problem', 'keep_right': True, 'iterations': 1, 'problems': 14400, 'group.first': 20,
        'group.second': 1},
    # In place of reinforcement learning in Stage II.
    'star_stage2': {'start_from': 'stage1', 'keep_right': True, 'steps': 3 * (stage2.get_config().steps // 3),
                    'problems': stage2.get_config().steps * stage2.get_config().batch // 3},
}


def get_config(preset: str = '') -> ConfigDict:
    if not preset:
        print(f'configs/baselines.py:NAME needs a name: one of {", ".join(PRESETS)}.', file=sys.stderr)
        sys.exit(2)
    both = stage1.get_config().steps + stage2.get_config().steps
    config = common.training(preset)
    config.kind = 'pairs'  # what runs it, see score_jax/run.py
    config.start_from = 'base'  # a stage: what is sampled from first, and what every iteration trains anew
    config.pairs = 'rollout'  # both attempts are of one rollout, or 'problem': of one problem
    config.keep_right = False  # first attempts that are right have pairs too
    config.iterations = 3  # rounds of sampling and training
    config.steps = both // 3 * 3  # updates in all; each iteration has its share, with a schedule of its own
    config.batch = 64  # pairs a step
    config.learning_rate = 1e-3  # at its highest
    config.problems = both * 16 // 3  # sampled in an iteration
    config.group = ConfigDict(dict(
        first=4,  # first attempts at each problem
        second=4,  # second attempts on each of them, where pairs are of one rollout
    ))
    config.rollout = common.sampling()
    config.temperature = 1.0  # of the distribution that is sampled from
    config.samples = 8  # transcripts of each iteration in samples.jsonl
    return common.preset(config, PRESETS, preset)
