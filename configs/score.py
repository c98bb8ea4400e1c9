"""The whole of SCoRe: base, Stage I, Stage II, evaluation and report."""

from ml_collections import ConfigDict

from configs import base, common, evaluate, stage1, stage2


def get_config() -> ConfigDict:
    config = common.shared()
    config.kind = 'pipeline'
    config.order = ('base', 'stage1', 'stage2', 'evaluate')  # sections below, in the order in which they run
    for name, stage in (('base', base), ('stage1', stage1), ('stage2', stage2), ('evaluate', evaluate)):
        config[name] = common.refer(stage.get_config(), config)
    config.stage1.before = ConfigDict()  # the base is a stage of its own here
    return config
