"""The paper's methods and ablations on Countdown, over several seeds: its tables 2 and 4 in miniature.

`python launch/main.py --config=configs/study.py --workdir=runs/study` takes some hours on two cores. What is done is
kept, so it may be interrupted, and two processes may share a workdir with different `--config.seeds`.
"""

from ml_collections import ConfigDict

from configs import ablation, base, baselines, common, evaluate, stage1, stage2

_ABLATIONS = ('single_turn', 'multi_turn', 'without_stage1', 'without_bonus', 'offline')
_SMOKE = {  # a look at the whole path, not a result
    'base': {'steps': 400, 'practice_steps': 200},
    'evaluate': {'problems': 20, 'batch': 20},
    'pairs': {'steps': 3, 'problems': 200, 'optimizer.warmup_steps': 0},
    'reinforce': {'steps': 2, 'batch': 2, 'optimizer.warmup_steps': 1, 'offline.problems': 20},
}
PRESETS = ('smoke',)


def get_config(preset: str = '') -> ConfigDict:
    config = common.preset(common.shared(), dict.fromkeys(PRESETS, {}), preset)
    config.kind = 'study'  # what runs it, see score_jax/run.py
    config.seeds = tuple(range(8)) if not preset else (0, 1)  # each has a folder of its own in the workdir
    sections = {'base': base.get_config(), 'stage1': stage1.get_config(), 'stage2': stage2.get_config()}
    sections |= {name: ablation.get_config(name) for name in _ABLATIONS}
    sections |= {name: baselines.get_config(name) for name in baselines.PRESETS}
    sections['evaluate'] = evaluate.get_config()
    sections['evaluate'].methods = ('self_refine', *(name for name in sections if name != 'evaluate'))
    sections['evaluate'].samples_per_problem = 4  # differences between methods are small
    config.order = tuple(sections)  # sections below, in the order in which they run
    for name, section in sections.items():
        config[name] = common.refer(section, config)
        if preset == 'smoke':
            values = _SMOKE.get(name) or _SMOKE[section.kind]
            section.update_from_flattened_dict({key: value for key, value in values.items() if _has(section, key)})
    config.stage1.before = ConfigDict()  # the base is a stage of its own here
    return config


def _has(section: ConfigDict, key: str) -> bool:
    head, _, rest = key.partition('.')
    return head in section and (not rest or _has(section[head], rest))
