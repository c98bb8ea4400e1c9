"""The whole of SCoRe: base, Stage I, Stage II, evaluation and report; over three turns Stage I(b) stands between."""

from ml_collections import ConfigDict

from configs import base, common, evaluate, models, stage1, stage1b, stage2, tasks

STAGES = {'base': base, 'stage1': stage1, 'stage1b': stage1b, 'stage2': stage2, 'evaluate': evaluate}
PRESETS = {name: {} for stage in STAGES.values() for name in stage.PRESETS}
PRESETS |= tasks.SHARED_PRESETS | models.SHARED_PRESETS


def get_config(preset: str = '') -> ConfigDict:
    """A preset is that of every stage that has it: `configs/score.py:smoke` shows the whole path in a minute or two."""
    config = common.preset(common.shared(), PRESETS, preset)
    config.kind = 'pipeline'  # what runs it, see score_jax/run.py
    # Sections below, in the order in which they run. The base of an open model is made; a tiny one of a task in words
    # has none.
    left_out = {'base': preset in tasks.SHARED_PRESETS | models.SHARED_PRESETS, 'stage1b': preset != 'three_turns'}
    config.order = tuple(name for name in STAGES if not left_out.get(name))
    for name in config.order:
        stage = STAGES[name]
        config[name] = common.refer(stage.get_config(preset if preset in stage.PRESETS else ''), config)
    config.stage1.before = ConfigDict()  # the base is a stage of its own here
    return config
