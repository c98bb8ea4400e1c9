"""The paper's baselines and ablations by reinforcement learning: `--config=configs/ablation.py:NAME`.

Each is a stage of its own in the workdir, beside `stage1` and `stage2`, with as many updates as these two together
where it does without Stage I; `--config=configs/evaluate.py --config.methods="('stage2', 'multi_turn')"` measures it.
"""

import sys

from ml_collections import ConfigDict

from configs import common, stage1, stage2

# The paper's. Stage II's 0.1 weighs as much beside what turn 2 earns, which its bonus multiplies by 1 + alpha.
_BETA1 = 0.01
# Without Stage I: from the base, with the updates of both stages.
_ONE_STAGE = {
    'start_from': 'base', 'steps': stage1.get_config().steps + stage2.get_config().steps, 'learning_rate': 1e-3}
PRESETS = {
    # It learns from first attempts alone: more of those, and of second ones no more than it takes to watch them.
    'single_turn': _ONE_STAGE | {
        'objective': common.objective('single_turn', beta1=_BETA1), 'group.first': 8, 'group.second': 1},
    'multi_turn': _ONE_STAGE | {'objective': common.objective('multi_turn', beta1=_BETA1)},
    'without_stage1': _ONE_STAGE,
    'without_bonus': {'objective.alpha': 0.0},
    # Stage II on first attempts of the base alone, and on as many of them as of its own.
    'offline': {'offline.share': 1.0},
    'mixture': {'offline.share': 0.5},
    # What gamma = 0 is for: the bonus reaches turn 1, where being wrong on purpose pays.
    'hack': {'objective.alpha': 10.0, 'objective.gamma': 1.0, 'objective.allow_gamma_hack': True},
}


def get_config(preset: str = '') -> ConfigDict:
    if not preset:
        print(f'configs/ablation.py:NAME needs a name: one of {", ".join(PRESETS)}.', file=sys.stderr)
        sys.exit(2)
    config = stage2.get_config()
    config.stage = preset
    return common.preset(config, PRESETS, preset)
