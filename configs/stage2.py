"""Stage II (Eq. 4): both turns, with the progress bonus."""

from ml_collections import ConfigDict

from configs import common, models

# After Stage I(b): every turn counts, and its gain over the turn before.
PRESETS = common.REINFORCE_PRESETS | models.STAGE2_PRESETS | {
    'three_turns': {'turns': 3, 'start_from': 'stage1b', 'group.second': 2, 'group.later': 2}}


def get_config(preset: str = '') -> ConfigDict:
    config = common.reinforce('stage2')
    config.start_from = 'stage1'  # a stage, the path of a Hugging Face model, or 'random': parameters that know nothing
    config.steps = 700  # updates in all
    config.learning_rate = 7e-4  # at its highest
    config.objective = common.objective('stage2', alpha=10.0, beta1=0.1)
    return common.preset(config, PRESETS, preset)
