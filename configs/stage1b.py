"""Stage I(b): learn to correct in turn 3, with turns 1 and 2 held at the model of Stage I(a).

One more turn is one more stage: `--config.stage=stage1c --config.turns=4 --config.start_from=stage1b
--config.reference=stage1b`.
"""

from ml_collections import ConfigDict

from configs import stage1

PRESETS = stage1.PRESETS


def get_config(preset: str = '') -> ConfigDict:
    config = stage1.get_config(preset)
    config.stage = 'stage1b'
    config.start_from = 'stage1'
    config.reference = 'stage1'
    config.before = ConfigDict()
    config.turns = 3
    if not any(key.startswith('group.') for key in PRESETS.get(preset, {})):
        config.group.update(first=2, second=2, later=4)  # turn 3 is what is learned
    if 'rollout.max_length' in PRESETS.get(preset, {}):  # which is that of two turns
        config.rollout.max_length += config.rollout.max_tokens + config.rollout.chunk  # the instruction fits in a chunk
    return config
