"""Every key is listed with its value, and with the comment that stands beside it in its config file."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import base, common, evaluate, score, stage1, stage1b, stage2
from score_jax import keys

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [base, stage1, stage1b, stage2, evaluate]


def leaves(config, section: str = '') -> list[str]:
    """Keys of the config itself; a section with a `kind` is the config of another stage."""
    names = []
    for name, value in config.items():
        if not hasattr(value, 'items'):
            names.append(section + name)
        elif 'kind' not in value:
            names += leaves(value, f'{section}{name}.')
    return names


def listed(config, file: str) -> dict[str, tuple[str, str]]:
    return {key: (value, meaning) for key, value, meaning in keys._rows(config, keys.comments(Path(file)))}


@pytest.mark.parametrize('module', CONFIGS, ids=lambda module: module.__name__)
def test_every_key_is_listed_with_its_value(module):
    rows, config = listed(module.get_config(), module.__file__), module.get_config()
    assert set(leaves(config)) <= rows.keys()
    assert rows['seed'][0] == '0' and rows['model.width'][0] == repr(config.model.width)


@pytest.mark.parametrize('module', CONFIGS, ids=lambda module: module.__name__)
def test_every_key_has_a_meaning(module):
    rows = listed(module.get_config(), module.__file__)
    assert [key for key, (_, meaning) in rows.items() if not meaning] == []


def test_a_key_means_what_its_own_file_says():
    assert listed(base.get_config(), base.__file__)['batch'][1] == 'dialogues a step'
    assert listed(stage1.get_config(), stage1.__file__)['batch'][1].startswith('problems a step')
    assert listed(stage1b.get_config(), stage1b.__file__)['batch'][1].startswith('problems a step')
    assert listed(evaluate.get_config(), evaluate.__file__)['batch'][1] == 'problems sampled at a time'


def test_comments_are_found_wherever_they_stand():
    rows = listed(stage2.get_config(), stage2.__file__)
    assert rows['objective.alpha'][1] == 'progress bonus'
    assert rows['objective.beta1'][1].startswith('KL weights')
    assert rows['rollout.max_tokens'][1].startswith('longest response')
    assert rows['mesh'][1].startswith('devices on each axis')
    assert listed(base.get_config(), base.__file__)['habits'][1].startswith('What it does')


def test_a_key_of_a_task_is_not_taken_for_one_of_the_model():
    rows = listed(stage1.get_config('mbpp-tiny'), stage1.__file__)
    assert rows['task.layers'][1].startswith('of the sandbox') and rows['model.layers'][1].startswith('blocks')
    assert rows['task.workers'][1] == 'processes that grade'


def test_a_stage_within_a_config_is_named_and_not_listed_again():
    rows = listed(score.get_config(), score.__file__)
    assert rows['stage1.*'][1] == 'the keys of configs/stage1.py' and 'stage1.steps' not in rows
    assert 'before.*' in listed(stage1.get_config(), stage1.__file__)


def test_every_comment_beside_a_key_of_the_shared_file_is_used():
    comments = set(keys.comments(Path(common.__file__)).values())
    lines = [line for line in Path(common.__file__).read_text().splitlines() if '=' in line.partition('#')[0]]
    beside = [line.partition('  # ')[2] for line in lines if '  # ' in line and '**' not in line]
    assert len(beside) > 40
    assert [text for text in beside if text not in comments] == []


def launch(*flags: str, code: str = '') -> subprocess.CompletedProcess:
    program = ['-c', f'import sys; sys.path.insert(0, "launch"); import main; {code}'] if code else ['launch/main.py']
    return subprocess.run([sys.executable, *program, *flags], cwd=ROOT, capture_output=True, text=True, env=os.environ)


def test_keys_are_printed_with_what_was_set_and_nothing_runs(tmp_path):
    done = launch('--config=configs/stage2.py', f'--workdir={tmp_path / "w"}', '--config.objective.alpha=7.5', '--keys')
    assert done.returncode == 0 and not (tmp_path / 'w').exists()
    line = next(line for line in done.stdout.splitlines() if line.startswith('objective.alpha'))
    assert line.split() == ['objective.alpha', '7.5', 'progress', 'bonus']


def test_a_preset_that_does_not_exist_is_answered_as_ever():
    done = launch('--config=configs/stage2.py:nothing', '--keys')
    assert done.returncode == 2 and "'nothing' is not a preset" in done.stderr


@pytest.mark.parametrize('flags, command', [
    (['stage1.py:smoke', '--config.steps=9', '--config.task.instruction=look again :'],
     'launch/main.py --config=configs/stage2.py:smoke --workdir=a/b "--config.task.instruction=look again :"'),
    (['stage1b.py'], 'launch/main.py --config=configs/stage2.py:three_turns --workdir=a/b'),
    (['ablation.py:hack'],
     """launch/main.py --config=configs/evaluate.py --workdir=a/b "--config.methods=('hack',)" """),
    (['score.py:smoke'], 'launch/try.py --workdir=a/b'),
])
def test_a_run_ends_with_the_next_command(flags, command):
    done = launch(f'--config=configs/{flags[0]}', *flags[1:], code='main.parse(sys.argv); print(main.following("a/b"))')
    assert shlex.split(done.stdout.splitlines()[0]) == ['python', *shlex.split(command)], done.stderr


