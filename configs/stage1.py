"""Stage I (Eq. 3): learn to correct in turn 2, with turn 1 held at the base model."""

from ml_collections import ConfigDict

from configs import base, common, models, tasks

PRESETS = common.REINFORCE_PRESETS | models.STAGE1_PRESETS


def get_config(preset: str = '') -> ConfigDict:
    config = common.reinforce('stage1')
    config.start_from = 'base'  # a stage, the path of a Hugging Face model, or 'random': parameters that know nothing
    if preset in tasks.REINFORCE_PRESETS:
        config.start_from = 'random'
    elif preset not in models.STAGE1_PRESETS:
        config.before = common.refer(base.get_config(preset if preset in base.PRESETS else ''), config)
    config.steps = 700  # updates in all
    config.learning_rate = 1.5e-3  # at its highest
    config.objective = common.objective('stage1', beta1=0.04, beta2=0.5)
    return common.preset(config, PRESETS, preset)
