"""`launch/main.py`: the whole pipeline, and mistakes that are answered in one sentence and change nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small
from helpers import environment
from ml_collections import ConfigDict

from configs import score, stage1, stage2
from score_jax.errors import UserError
from score_jax.run import run

ROOT = Path(__file__).resolve().parents[1]
STEPS = small.TRAINING['steps']
LOGGED = {'save_every': 4, 'log_every': 3}
BASE = small.BASE | LOGGED
REINFORCE = small.REINFORCE | LOGGED | {'sample_every': 2, 'samples': 2}
EVALUATION = small.EVALUATE | {'temperatures': (1.0, 0.0)}
PIPELINE = small.MODEL | {
    key: value for name, values in dict(base=BASE, stage1=REINFORCE, stage2=REINFORCE, evaluate=EVALUATION).items()
    for key, value in small.under(name, values).items()}
STAGE1 = small.MODEL | REINFORCE | small.under('before', BASE)


def launch(config: str, workdir: Path, *flags: str, devices: int = 1, **overrides) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, 'launch/main.py', f'--config={config}', f'--workdir={workdir}', *flags,
         *(f'--config.{key}={value}' for key, value in overrides.items())],
        cwd=ROOT, capture_output=True, text=True, env=environment(devices))


def make(config_file, values: dict, **changes) -> ConfigDict:
    config = config_file.get_config()
    config.update_from_flattened_dict(values | changes)
    return config


def files(workdir: Path) -> dict[Path, bytes]:
    paths = workdir.rglob('*') if workdir.is_dir() else [workdir]
    return {path: path.read_bytes() for path in paths if path.is_file()}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refusal(config: ConfigDict, workdir: Path) -> str:
    """What a run says; it must change nothing."""
    before = files(workdir)
    with pytest.raises(UserError) as error:
        run(config, workdir)
    assert files(workdir) == before
    text = str(error.value)
    assert '\n' not in text and text
    return text


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory):
    """(workdir, what was printed) of a small run of the whole."""
    workdir = tmp_path_factory.mktemp('pipeline') / 'w'
    done = launch('configs/score.py', workdir, **PIPELINE)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture
def copied(pipeline, tmp_path) -> Path:
    return shutil.copytree(pipeline[0], tmp_path / 'copied')


def test_the_pipeline_leaves_results_of_every_stage_and_a_report(pipeline):
    workdir, output = pipeline
    results = json.loads((workdir / 'results.json').read_text())
    assert [(row['temperature'], row['method']) for row in results] == [
        (temperature, method) for temperature in (1.0, 0.0) for method in ('base', 'stage1', 'stage2')]
    assert {(row['n'], row['seed']) for row in results} == {(40, 0)}
    assert '<html' in (workdir / 'report.html').read_text()
    assert str(workdir / 'report.html') in output and str(workdir / 'results.json') in output


@pytest.mark.parametrize('stage', ['base', 'stage1', 'stage2'])
def test_every_stage_leaves_its_config_and_a_line_a_step(pipeline, stage):
    workdir, _ = pipeline
    config = json.loads((workdir / stage / 'config.json').read_text())
    assert config['stage'] == stage and config['model']['width'] == 16 and config['task']['largest'] == 9
    assert [row['step'] for row in rows(workdir / stage / 'metrics.jsonl')] == list(range(1, STEPS + 1))


def test_samples_are_taken_as_often_as_the_config_says(pipeline):
    workdir, _ = pipeline
    assert [row['step'] for row in rows(workdir / 'stage2' / 'samples.jsonl')] == [1, 1, 3, 3, 5, 5]
    assert len(rows(workdir / 'evaluation' / 'samples.jsonl')) == 2 * 3 * 5


def test_the_objective_of_each_stage_is_printed(pipeline):
    _, output = pipeline
    assert output.count('KL estimator exact') == 2


def test_a_pipeline_that_is_done_is_skipped_and_leaves_the_same_figures(pipeline):
    workdir, _ = pipeline
    before = files(workdir)
    again = launch('configs/score.py', workdir, **PIPELINE)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(f'all {STEPS} steps are done already') == 3
    assert again.stdout.count('is measured already') == 6
    assert {path for path, data in files(workdir).items() if before[path] != data} <= {workdir / 'report.html'}


def test_stage2_alone_says_what_to_run_first(tmp_path):
    workdir = tmp_path / 'w'
    done = launch('configs/stage2.py', workdir, **small.MODEL, **REINFORCE)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f'first run python launch/main.py --config=configs/stage1.py --workdir={workdir}' in done.stderr
    assert not workdir.exists()


def test_a_batch_that_the_mesh_does_not_divide_is_refused_with_the_nearest_sizes(tmp_path):
    done = launch('configs/stage1.py', tmp_path / 'w', devices=8, **STAGE1 | {'batch': 12})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert 'config.batch is 12' in done.stderr and '8 or 16 would work' in done.stderr
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('flag, named', [
    ('--config.batchs=8', 'config.batchs'), ('--config.model.widht=8', 'config.model.widht')])
def test_an_unknown_key_is_refused_in_one_sentence(flag, named, tmp_path):
    done = launch('configs/base.py', tmp_path / 'w', flag)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr and 'did you mean' in done.stderr.lower()
    assert not (tmp_path / 'w').exists()


def test_a_config_file_that_does_not_exist_is_refused_in_one_sentence(tmp_path):
    done = launch('configs/nothing.py', tmp_path / 'w')
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and 'configs/nothing.py' in done.stderr


@pytest.mark.parametrize('flags, named', [
    (['--config.steps=many'], '--config.steps=many'), (['--confg=x'], "'confg'"), (['more'], 'not a flag: more')])
def test_a_mistake_in_a_flag_is_answered_by_absl(flags, named, tmp_path):
    done = launch('configs/base.py', tmp_path / 'w', *flags)
    assert done.returncode == 1
    assert named in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('changes, named', [
    ({'kind': 'reinforced'}, "config.kind is 'reinforced'"),
    ({'task.name': 'chess'}, "config.task.name is 'chess'"),
    ({'task.limit': 20}, 'limit = 20'),
    ({'model.head_dim': 7}, 'config.model.head_dim is 7'),
    ({'model.dtype': 'float16'}, "config.model.dtype is 'float16'"),
    ({'mesh.model': 3}, 'config.mesh'),
    ({'steps': 0}, 'config.steps is 0'),
    ({'seed': -1}, 'config.seed is -1'),
    ({'optimizer.schedule': 'cubic'}, "config.optimizer.schedule is 'cubic'"),
    ({'optimizer.warmup_steps': STEPS}, f'config.optimizer.warmup_steps is {STEPS}'),
    ({'group.first': 1}, 'config.group.first is 1'),
    ({'group.second': 0}, 'config.group'),
    ({'objective.name': 'stage3'}, "config.objective.name is 'stage3'"),
    ({'objective.gamma': -1.0}, 'config.objective.gamma is -1'),
    ({'rollout.max_length': 20}, 'config.rollout.max_length is 20'),
    ({'rollout.max_tokens': 0}, 'max_tokens = 0'),
    ({'temperature': 0.0}, 'config.temperature is 0'),
    ({'sample_every': 0}, 'config.sample_every is 0'),
    ({'samples': -1}, 'config.samples is -1'),
    ({'before.habits.solve': 1.5}, 'config.habits.solve is 1.5'),
])
def test_a_value_that_cannot_work_is_refused_before_anything_is_written(changes, named, tmp_path):
    assert named in refusal(make(stage1, STAGE1, **changes), tmp_path / 'w')


def test_only_the_stage_that_is_missing_is_made_before(tmp_path):
    text = refusal(make(stage1, STAGE1, start_from='sft'), tmp_path / 'w')
    assert "holds no checkpoint of 'sft'; first run" in text and '--config=<the config of that stage>' in text


def test_a_missing_reference_is_refused_before_anything_is_written(copied):
    shutil.rmtree(copied / 'stage2')
    config = make(stage2, small.MODEL | REINFORCE, reference='base0')
    assert 'base0' in refusal(config, copied)


def test_a_workdir_of_another_config_is_refused_and_the_difference_named(copied):
    text = refusal(make(score, PIPELINE, **{'stage1.learning_rate': 0.125}), copied)
    assert 'config.learning_rate' in text and '-> 0.125' in text and '--workdir' in text


def test_a_stage_of_another_model_is_refused_as_a_start(copied):
    shutil.rmtree(copied / 'stage1')
    config = make(stage1, STAGE1 | {'model.width': 8})
    config.before = ConfigDict()
    assert 'does not fit' in refusal(config, copied)


def test_a_damaged_checkpoint_is_refused_as_a_start(copied):
    shutil.rmtree(copied / 'stage1')
    folder = copied / 'base' / 'checkpoints' / str(STEPS)
    damage(folder)
    text = refusal(make(stage1, STAGE1), copied)
    assert str(folder) in text and 'damaged' in text and 'move it away' in text


def test_a_stage_whose_every_checkpoint_is_damaged_is_refused(copied):
    shutil.rmtree(copied / 'stage1' / 'checkpoints' / str(STEPS))
    folder = copied / 'stage1' / 'checkpoints'
    damage(folder / '4')
    text = refusal(make(stage1, STAGE1), copied)
    assert f'every checkpoint in {folder} is damaged (step 4: ' in text and 'move it away' in text


def damage(folder: Path) -> None:
    """Overwrites every 99th byte of the arrays' files; which of them holds what is Orbax's choice."""
    for path in (folder / 'state').rglob('d/*'):
        data = bytearray(path.read_bytes())
        data[::99] = bytes(255 - byte for byte in data[::99])
        path.write_bytes(data)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    workdir = tmp_path / 'w'
    workdir.write_text('not a folder')
    assert str(workdir) in refusal(make(stage1, STAGE1), workdir)


@pytest.mark.parametrize('body, fault', [
    ('no_such_module.value', 'AttributeError'), ("open('no-such-file')", 'no-such-file')])
def test_a_fault_inside_a_config_file_is_shown_where_it_is(body, fault, tmp_path):
    """It is neither a mistyped key nor an unreadable config."""
    path = tmp_path / 'broken.py'
    path.write_text(f'import configs as no_such_module\n\ndef get_config(_=None):\n    return {body}\n')
    done = subprocess.run(
        [sys.executable, 'launch/main.py', f'--config={path}', f'--workdir={tmp_path}'], cwd=ROOT, capture_output=True,
        text=True, check=False)
    assert done.returncode == 1 and fault in done.stderr and str(path) in done.stderr


@pytest.mark.parametrize('flags, then', [
    (['--config=configs/base.py:smoke'], 'python launch/main.py --config=configs/stage1.py:smoke --workdir=a'),
    (['--config=configs/stage1.py', '--config.seed=3', '--config.steps=2'],
     'python launch/main.py --config=configs/stage2.py --workdir=a --config.seed=3'),
    (['--config=configs/stage1b.py'], 'python launch/main.py --config=configs/stage2.py:three_turns --workdir=a'),
    (['--config=configs/ablation.py:multi_turn'],
     """python launch/main.py --config=configs/evaluate.py --workdir=a '--config.methods=('"'"'multi_turn'"'"',)'"""),
    (['--config=configs/baselines.py:star'],
     """python launch/main.py --config=configs/evaluate.py --workdir=a '--config.methods=('"'"'star'"'"',)'"""),
    (['--config=configs/study.py'], 'python launch/watch.py --workdir=a'),
    (['--config=configs/evaluate.py'],
     'python launch/try.py --workdir=a\n         python launch/watch.py --workdir=a')])
def test_the_next_command_goes_on_from_what_was_run(flags, then):
    code = ('import sys; from absl import flags; from launch import main; flags.FLAGS(["main", *sys.argv[1:]]); '
            'print(main.following("a"))')
    done = subprocess.run([sys.executable, '-c', code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.rstrip('\n') == then, done.stderr
