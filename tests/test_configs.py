"""Every key of every config is declared and read; shared keys reach every stage."""

import dataclasses
import functools
import importlib

import pytest
from ml_collections import ConfigDict

from configs import ablation, baselines, stage1b
from configs.tasks import TASKS
from score_jax import objective, rollout, settings, tasks, train
from score_jax.baselines.pairs import PairsConfig
from score_jax.baselines.supervised import SupervisedConfig
from score_jax.errors import UserError
from score_jax.evaluate import EvaluateConfig, Evaluation
from score_jax.optimizer import OptimizerConfig
from score_jax.model import ModelConfig
from score_jax.reinforce import ReinforceConfig
from score_jax.run import run
from score_jax.settings import SHARED
from score_jax.tasks.countdown import CountdownConfig

STAGES = {'base': SupervisedConfig, 'stage1': ReinforceConfig, 'stage2': ReinforceConfig, 'evaluate': EvaluateConfig}
OTHER = {int: 'text', float: 'text', bool: 'text', str: 5, tuple: 5, ConfigDict: 5}  # a value of another type


def load(name: str) -> ConfigDict:
    return importlib.import_module(f'configs.{name}').get_config()


def sections(config: ConfigDict, path: str = ''):
    """(path, section) of `config` and of every section in it; not the stage that may come before, a config itself."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, ConfigDict) and key != 'before':
            yield from sections(value, f'{path}{key}.')


EVERY_SECTION = [(name, path) for name in STAGES for path, _ in sections(load(name))]
EVERY_KEY = [(name, path, key) for name in STAGES for path, section in sections(load(name)) for key in section]


@pytest.fixture(autouse=True)
def no_stage_runs(monkeypatch):
    for cls in (train.Stage, Evaluation):
        monkeypatch.setattr(cls, 'run', lambda self: pytest.fail('the config was accepted'))


def section_of(config: ConfigDict, path: str) -> ConfigDict:
    return dict(sections(config))[path]


def refusal(config: ConfigDict, workdir) -> str:
    """What a run of `config` says; it must write nothing."""
    with pytest.raises(UserError) as error:
        run(config, workdir)
    assert not workdir.exists()
    assert '\n' not in str(error.value)
    return str(error.value)


def fields(cls, *given_elsewhere: str) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)} - set(given_elsewhere)


@pytest.mark.parametrize('name', STAGES)
def test_the_keys_of_a_config_are_those_that_are_read(name):
    config = load(name)
    settings.read(STAGES[name], config)
    assert set(config.model) == fields(ModelConfig, 'vocab_size')
    assert set(config.task) == fields(CountdownConfig) | {'name'}
    if 'optimizer' in config:
        assert set(config.optimizer) == fields(OptimizerConfig, 'steps', 'learning_rate')
    if 'objective' in config:
        objective.read(config.objective, config.turns)


EVERY_PRESET = [
    (name, preset) for name in (*STAGES, 'stage1b') for preset in importlib.import_module(f'configs.{name}').PRESETS]


@pytest.mark.parametrize('name, preset', EVERY_PRESET)
def test_a_preset_has_the_keys_that_are_read_and_no_others(name, preset):
    config = importlib.import_module(f'configs.{name}').get_config(preset)
    settings.read(STAGES.get(name, ReinforceConfig), config)
    assert set(config.model) == fields(ModelConfig, 'vocab_size')
    values = dict(config.task)
    settings.read(tasks.TASKS[values.pop('name')][1], values, 'config.task')


@pytest.mark.parametrize('name', ablation.PRESETS)
def test_an_ablation_is_stage_2_in_a_folder_of_its_own(name):
    config, stage2 = ablation.get_config(name), load('stage2')
    settings.read(ReinforceConfig, config)
    objective.read(config.objective, config.turns)
    assert config.stage == name
    may_differ = {'stage', 'objective', 'start_from', 'steps', 'learning_rate', 'group', 'offline'}
    assert {key for key in config if config[key] != stage2[key]} <= may_differ
    total = stage2.steps + (load('stage1').steps if config.start_from == 'base' else 0)
    assert config.steps == total


@pytest.mark.parametrize('name', baselines.PRESETS)
def test_a_baseline_has_the_keys_that_are_read_and_the_updates_of_what_it_replaces(name):
    config = settings.read(PairsConfig, baselines.get_config(name))
    total = load('stage2').steps + (load('stage1').steps if config.start_from == 'base' else 0)
    assert total - 3 < config.steps <= total


@pytest.mark.parametrize('module', [ablation, baselines])
def test_an_ablation_or_a_baseline_without_a_name_is_refused(module):
    with pytest.raises(SystemExit):
        module.get_config()


def test_a_third_turn_is_a_stage_between_held_at_the_one_before():
    config = importlib.import_module('configs.score').get_config('three_turns')
    assert config.order == ('base', 'stage1', 'stage1b', 'stage2', 'evaluate')
    held = [(config[name].start_from, config[name].reference, config[name].turns) for name in config.order[1:4]]
    assert held == [('base', 'base', 2), ('stage1', 'stage1', 3), ('stage1b', 'base', 3)]
    assert config.stage1b.objective.name == 'stage1' and config.evaluate.turns == 3
    assert {config[name].group.first * config[name].group.second * later for name, later in (
        ('stage1', 1), ('stage1b', config.stage1b.group.later), ('stage2', config.stage2.group.later))} == {16}


@pytest.mark.parametrize('name', TASKS)
def test_the_section_of_a_task_has_the_keys_that_are_read(name):
    values = dict(TASKS[name])
    assert values.pop('name') == name
    settings.read(tasks.TASKS[name][1], values, 'config.task')


def test_a_tiny_pipeline_on_words_has_no_base_and_one_task():
    config = importlib.import_module('configs.score').get_config('math-tiny')
    config.task.data_dir = 'somewhere'
    assert config.order == ('stage1', 'stage2', 'evaluate') and not set(config) - {
        'kind', 'order', *SHARED, 'stage1', 'stage2', 'evaluate'}
    assert all(config[name].task == config.task for name in config.order)
    assert (config.stage1.start_from, config.stage2.start_from, config.stage2.reference) == (
        'random', 'stage1', 'random')


@pytest.mark.parametrize('name, path', EVERY_SECTION)
def test_a_key_that_nothing_reads_is_refused_in_every_section(name, path, tmp_path):
    config = load(name)
    with config.unlocked():
        section_of(config, path)['no_such_key'] = 1
    assert f'config.{path}no_such_key' in refusal(config, tmp_path / 'w')


@pytest.mark.parametrize('name, path, key', EVERY_KEY)
def test_a_key_that_is_missing_is_named(name, path, key, tmp_path):
    config = load(name)
    with config.unlocked():
        del section_of(config, path)[key]
    assert f'config.{path}{key}' in refusal(config, tmp_path / 'w')


@pytest.mark.parametrize('name, path, key', EVERY_KEY)
def test_a_value_of_another_type_is_named(name, path, key, tmp_path):
    config = load(name)
    section = section_of(config, path)
    other = OTHER[type(section[key])]
    with config.unlocked(), config.ignore_type():
        section[key] = other
    text = refusal(config, tmp_path / 'w')
    assert f'config.{path}{key}' in text and repr(other) in text


@pytest.mark.parametrize('name', ['optimizer.steps', 'optimizer.learning_rate', 'model.vocab_size'])
def test_a_key_that_follows_from_others_cannot_be_given(name, tmp_path):
    config = load('base')
    with config.unlocked():
        config.update_from_flattened_dict({name: 1})
    assert f'config.{name}' in refusal(config, tmp_path / 'w')


def test_the_pipeline_has_the_stages_in_their_order_and_nothing_else():
    config = load('score')
    assert config.order == tuple(STAGES)
    assert set(config) == {'kind', 'order', *SHARED, *STAGES}


@pytest.mark.parametrize('name', STAGES)
def test_a_stage_of_the_pipeline_has_the_values_of_its_own_config(name):
    pipeline, own = load('score')[name].to_dict(), load(name).to_dict()
    if 'before' in own:
        pipeline['before'] = own['before'] = {}  # the base is a stage of its own in the pipeline
    assert pipeline == own


def shared_values(config: ConfigDict) -> dict:
    """The shared keys and their values, flat."""
    sections = {key: config[key] for key in SHARED}
    return {path: value for path, value in flatten(sections)}


def flatten(section, path: str = ''):
    for key, value in section.items():
        if hasattr(value, 'items'):
            yield from flatten(value, f'{path}{key}.')
        else:
            yield f'{path}{key}', value


def changed(value):
    return not value if isinstance(value, bool) else value + ('x' if isinstance(value, str) else 1)


@pytest.mark.parametrize('path', shared_values(load('score')))
def test_a_shared_key_reaches_every_stage_when_it_is_overridden(path):
    config = load('score')
    value = changed(shared_values(config)[path])
    config.update_from_flattened_dict({path: value})
    assert {name: shared_values(config[name])[path] for name in STAGES} == dict.fromkeys(STAGES, value)


@pytest.mark.parametrize('path', shared_values(load('stage1')))
def test_a_shared_key_reaches_the_base_that_stage1_makes_first(path):
    config = load('stage1')
    value = changed(shared_values(config)[path])
    config.update_from_flattened_dict({path: value})
    assert shared_values(config.before)[path] == value


@pytest.mark.parametrize('preset', stage1b.PRESETS)
def test_stage_1b_has_the_values_of_its_preset(preset):
    config = stage1b.get_config(preset)
    for path, value in stage1b.PRESETS[preset].items():
        if path not in ('task', 'reference', 'rollout.max_length'):  # a section; what stage1b is about; see below
            *sections, key = path.split('.')
            assert functools.reduce(lambda section, name: section[name], sections, config)[key] == value


@pytest.mark.parametrize('preset', [name for name in stage1b.PRESETS if 'rollout.max_length' in stage1b.PRESETS[name]])
def test_three_turns_of_a_preset_fit(preset):
    config = stage1b.get_config(preset)
    instruction = len(config.task.instruction)  # in bytes, as the tiny model reads it
    if config.chat:
        instruction = instruction // 2 + 16  # words have more than two letters; what opens and closes turns
    sampling = rollout.RolloutConfig(turns=3, temperature=1.0, **config.rollout, end_tokens=(0,), pad_token=0)
    sampling.check_length(config.task.max_prompt, instruction)
