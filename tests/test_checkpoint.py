"""Checkpoints come back to the bit, on any mesh, or not at all."""

import collections
import contextlib
import gc
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from score_jax.checkpoint import Checkpoints, Damaged, _checksum, exists
from score_jax.errors import UserError

DAMAGES = 200  # random ones
ROOT = Path(__file__).resolve().parents[1]
META = {'config': {'lr': 3e-4, 'shape': [1, 2]}, 'position': 12345678901234, 'seed': 7, 'stage': 'stage1', 'none': None}


@flax.struct.dataclass
class TrainState:
    step: jax.Array
    params: dict
    opt_state: optax.OptState


def make_state(step: int = 0) -> TrainState:
    """One update of AdamW over f32 and bf16 leaves, beside int32 ones; its bits depend on `step`."""
    keys = jax.random.split(jax.random.key(step), 3)
    trained = {
        'layers': {'q': jax.random.normal(keys[0], (4, 8, 16)), 'scale': jnp.full((8,), jnp.nan)},
        'embed': jax.random.normal(keys[1], (32, 8), jnp.bfloat16),
    }
    optimiser = optax.adamw(1e-3)
    _, opt_state = optimiser.update(jax.tree.map(lambda x: x * 3, trained), optimiser.init(trained), trained)
    return TrainState(jnp.int32(step), trained | {'ids': jnp.arange(5, dtype=jnp.int32) - 2 + step}, opt_state)


def abstract(tree, place=lambda path, x: None):
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(path, x)), tree)


def same_bits(a, b) -> bool:
    def same(x, y):
        return x.dtype == y.dtype and x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(same, a, b))


def save(directory: Path, steps, rewards=None, **options) -> Checkpoints:
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(step, make_state(step), meta={**META, 'step': step}, reward=(rewards or {}).get(step))
    checkpoints.wait()
    return checkpoints


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> Path:
    """A directory with steps 3 and 5; tests that change it work on a copy."""
    directory = tmp_path_factory.mktemp('saved') / 'stage1'
    save(directory, [3, 5]).close()
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    yield shutil.copytree(saved, tmp_path / 'copy')
    gc.collect()  # here, not at the end of the session: reads that Orbax gave up complain when they are collected


def test_round_trip_is_bit_exact(saved):
    state, meta = Checkpoints(saved).restore(make_state(0))
    assert same_bits(state, make_state(5)) and meta == {**META, 'step': 5}
    state, meta = Checkpoints(saved).restore(abstract(make_state(0)), step=3)
    assert same_bits(state, make_state(3)) and meta == {**META, 'step': 3}


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    state = make_state(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, meta={})
    jax.jit(lambda s: jax.tree.map(lambda x: x + x.dtype.type(1), s), donate_argnums=0)(state)
    assert same_bits(checkpoints.restore(make_state(0))[0], make_state(1))
    checkpoints.close()


def test_looking_changes_nothing(tmp_path):
    directory = tmp_path / 'run' / 'stage1'
    checkpoints = Checkpoints(directory)
    assert checkpoints.latest() is None and checkpoints.best() is None and not exists(directory)
    with pytest.raises(UserError, match=f'no checkpoint in {directory}'):
        checkpoints.restore(make_state())
    with pytest.raises(UserError, match=f'no checkpoint in {directory}'):
        checkpoints.restore_params({})
    checkpoints.close()
    assert not directory.parent.exists()


def test_the_latest_and_the_best_are_kept(tmp_path):
    rewards = {1: 0.1, 2: 0.7, 3: float('nan'), 4: 0.7, 5: 0.2, 6: -1.0}
    with_rewards = save(tmp_path / 'a', [1, 2, 3], rewards)
    assert with_rewards.steps() == [2, 3] and with_rewards.latest() == 3 and with_rewards.best() == 2
    with_rewards.close()
    with_rewards = save(tmp_path / 'a', [4, 5, 6, 7], rewards)  # rewards of an earlier process count
    assert with_rewards.steps() == [4, 6, 7] and with_rewards.latest() == 7 and with_rewards.best() == 4
    assert same_bits(with_rewards.restore(make_state(), step=with_rewards.best())[0], make_state(4))
    with_rewards.close()
    assert Checkpoints(tmp_path / 'a').best() == 4 and exists(tmp_path / 'a')

    without = save(tmp_path / 'b', [1, 2], keep=1)
    assert without.steps() == [2] and without.best() == without.latest() == 2
    without.close()


def test_nothing_is_overwritten(copy):
    checkpoints = Checkpoints(copy)
    for step in (4, 5):
        with pytest.raises(UserError, match=f'step {step} cannot be saved.*step 5'):
            checkpoints.save(step, make_state(9), meta={})
    with pytest.raises(UserError, match=r'no checkpoint of step 4 .*\[3, 5\]'):
        checkpoints.restore(make_state(), step=4)
    assert same_bits(checkpoints.restore(make_state())[0], make_state(5))


def test_meta_that_json_would_change_is_refused(tmp_path):
    with pytest.raises(ValueError, match='plain JSON'):
        Checkpoints(tmp_path).save(1, make_state(), meta={'shape': (1, 2)})


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=f"written to {tmp_path / 'file'}"):
        Checkpoints(tmp_path / 'file').save(1, make_state(), meta={})


def test_params_alone_in_the_dtype_asked_for(saved):
    params = make_state(5).params
    assert same_bits(Checkpoints(saved).restore_params(abstract(params)), params)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    assert same_bits(Checkpoints(saved).restore_params(half), jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_one_device_to_a_mesh_and_back(saved, tmp_path):
    mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'model'), axis_types=(AxisType.Auto,) * 3)
    specs = {'q': PartitionSpec(None, 'fsdp', 'model'), 'embed': PartitionSpec(('data', 'model'), 'fsdp')}

    def place(path, x):
        return NamedSharding(mesh, specs.get(getattr(path[-1], 'key', None), PartitionSpec()))

    state, _ = Checkpoints(saved).restore(abstract(make_state(), place))
    assert same_bits(state, make_state(5))
    assert state.opt_state[0].mu['embed'].sharding.spec == specs['embed']
    assert len(state.params['layers']['q'].addressable_shards) == 8
    params = Checkpoints(saved).restore_params(abstract(make_state().params, place))
    assert same_bits(params, make_state(5).params) and params['embed'].sharding.spec == specs['embed']

    sharded = Checkpoints(tmp_path)
    sharded.save(6, state, meta={})
    assert same_bits(sharded.restore(make_state())[0], make_state(5))
    sharded.close()


@pytest.mark.parametrize('change, message', [
    (lambda p: {**p, 'embed': jnp.zeros((32, 9), jnp.bfloat16)}, r'params/embed is bfloat16\[32, 8\] there.*\[32, 9\]'),
    (lambda p: {**p, 'embed': jnp.zeros((32, 8))}, r'params/embed is bfloat16\[32, 8\] there.*float32\[32, 8\] here'),
    (lambda p: {**p, 'extra': jnp.zeros(3)}, r'params/extra is absent there and float32\[3\] here'),
    (lambda p: {k: v for k, v in p.items() if k != 'ids'}, r'params/ids is int32\[5\] there and absent here'),
])
def test_another_tree_or_shape_is_named(saved, change, message):
    like = make_state()
    with pytest.raises(UserError, match=message):
        Checkpoints(saved).restore(like.replace(params=change(like.params)))
    if 'float32[32' not in message.replace('\\', ''):  # params may change their dtype
        with pytest.raises(UserError, match=message):
            Checkpoints(saved).restore_params(change(like.params))


def damages(content: bytes):
    yield None
    yield b''
    yield content[:len(content) // 2]
    yield content + b'\0'
    for position in np.linspace(0, len(content) - 1, 3).astype(int):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        yield bytes(flipped)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::RuntimeWarning')
def test_damage_gives_the_true_numbers_or_an_error_that_names_the_step_and_a_run_goes_on_from_the_one_before(copy):
    """Deletes, truncates and flips bits in every file of step 5."""
    truth, like, detected = make_state(5), make_state(), set()
    files = [path for path in (copy / '5').rglob('*') if path.is_file()]
    assert 10 < len(files) < 30
    for path in files:
        content = path.read_bytes()
        for damaged in damages(content):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            checkpoints = Checkpoints(copy)
            assert checkpoints.latest() == 5 and checkpoints.best() == 5
            try:
                state, meta = checkpoints.restore(like)
                assert same_bits(state, truth) and meta == {**META, 'step': 5}, path
            except Damaged as error:
                detected.add(path)
                assert f"checkpoint {copy / '5'} is damaged" in str(error)
                assert 'move it away, then the run goes on from step 3' in str(error) and '\n' not in str(error)
                step, state, (warning,) = checkpoints.resume(like)
                assert step == 3 and same_bits(state, make_state(3)) and checkpoints.steps() == [3]
                moved = copy.with_name('copy-damaged') / '5'
                assert f"checkpoint {copy / '5'} is damaged" in warning and f'moved to {moved}' in warning
                moved.rename(copy / '5')
            assert damaged is None or path.read_bytes() == damaged  # nothing is repaired or removed
            path.write_bytes(content)
    assert same_bits(Checkpoints(copy).restore(like)[0], truth)
    assert max(files, key=lambda path: path.stat().st_size) in detected and copy / '5/meta/metadata' in detected
    shutil.rmtree(copy / '3')
    (copy / '5/meta/metadata').write_text('{}')
    with pytest.raises(UserError, match='starts anew'):
        Checkpoints(copy).restore(like)


def harm(folder: Path, rng: random.Random) -> str:
    """One random damage to the checkpoints in `folder`, the newest more often; says what."""
    step = folder / ('5' if rng.random() < 0.75 else '3')
    paths = sorted(path for path in step.rglob('*')) if step.is_dir() else []
    files = [path for path in paths if path.is_file()]
    if not files:
        return 'nothing'
    path, file, kind = rng.choice(paths), rng.choice(files), rng.randrange(9)
    content = bytearray(file.read_bytes())
    if kind == 0:
        file.write_bytes(content[:rng.randrange(len(content) + 1)])
    elif kind in (1, 2):
        for place in rng.choices(range(len(content)), k=rng.choice((1, 1, 20))) if content else ():
            content[place] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif kind == 3:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif kind == 4:  # as a save or a move leaves it that is cut off half-way
        path.rename(path.with_name(path.name + rng.choice(('.tmp', '.orbax-checkpoint-tmp'))))
    elif kind == 5:
        step.rename(step.with_name(rng.choice((f'{step.name}.orbax-checkpoint-tmp', f'0{step.name}', f'{step.name}~'))))
    elif kind == 6:
        shutil.rmtree(step)
        rng.choice((step.mkdir, step.touch))()
    elif kind == 7:
        file.write_bytes(rng.choice(files).read_bytes())
    else:  # parts of two checkpoints under one number
        part, other = rng.choice(('state', 'meta')), folder / ('3' if step.name == '5' else '5')
        if (other / part).is_dir() and (step / part).is_dir():
            shutil.rmtree(step / part)
            shutil.copytree(other / part, step / part)
    return f'{kind} {step.name} {path.relative_to(step)} {file.relative_to(step)}'


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::RuntimeWarning')
def test_whatever_happens_to_the_files_a_run_goes_on_from_true_numbers_or_is_refused_in_a_sentence(tmp_path):
    def small(step: int) -> dict:
        return {'params': {'w': jnp.arange(700.0) * step, 'b': jnp.full(3, step)}, 'step': jnp.int32(step)}

    truth, like, ends = {step: small(step) for step in (3, 5)}, small(0), collections.Counter()
    with contextlib.closing(Checkpoints(saved := tmp_path / 'saved')) as checkpoints:
        for step, state in truth.items():
            checkpoints.save(step, state, meta={})
    for seed in range(DAMAGES):
        rng, folder = random.Random(seed), tmp_path / f'{seed}'
        shutil.copytree(saved, folder)
        done = [harm(folder, rng) for _ in range(rng.choice((1, 1, 2, 5)))]
        checkpoints = Checkpoints(folder)
        try:
            found = checkpoints.resume(like)
        except UserError as error:
            assert '\n' not in str(error) and str(folder) in str(error), done
            ends['refused'] += 1
        else:
            step, state, warnings = found or (None, None, [])
            assert found is None or same_bits(state, truth[step]), done
            assert found or not checkpoints.steps(), done
            assert len(warnings) == (5 in [int(path.name) for path in folder.parent.glob(f'{seed}-damaged/5')]), done
            assert max(checkpoints.steps(), default=None) == step, done
            ends[step] += 1
        shutil.rmtree(folder)
    gc.collect()
    assert ends[5] and ends[3] and ends['refused'] and sum(ends.values()) == DAMAGES


def test_the_next_save_takes_the_number_of_a_damaged_one_and_what_is_moved_aside_is_kept(copy):
    for _ in range(2):
        (copy / '5/meta/metadata').write_text('{}')
        checkpoints = Checkpoints(copy)
        assert checkpoints.resume(make_state())[0] == 3
        checkpoints.save(5, make_state(5), meta={})
        checkpoints.close()
        assert same_bits(Checkpoints(copy).resume(make_state())[1], make_state(5))
    assert sorted(path.name for path in copy.with_name('copy-damaged').iterdir()) == ['5', '5-1']


FULL = """
import resource, sys
sys.path[:0] = [{root!r}]
import jax.numpy as jnp
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
checkpoints, state = Checkpoints({directory!r}), {{'params': {{'w': jnp.arange(300_000)}}}}
checkpoints.save(1, state, meta={{}})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoints.save(2, state, meta={{}})
    checkpoints.close()
except UserError as error:
    print(error)
"""


def test_what_cannot_be_written_is_told_in_one_sentence_and_leaves_what_is_there(tmp_path):
    """A file may not grow beyond a limit, as on a full disk."""
    program = FULL.format(root=str(ROOT), directory=str(tmp_path / 'stage'))
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120)
    assert f"no checkpoint could be written to {tmp_path / 'stage'} (File too large): make room" in run.stdout
    assert len(run.stdout.splitlines()) == 1
    checkpoints = Checkpoints(tmp_path / 'stage')
    assert checkpoints.resume({'params': {'w': jnp.zeros(300_000, jnp.int32)}})[0] == 1


def test_readable_arrays_of_another_step_are_found_by_their_checksums(copy):
    shutil.rmtree(copy / '5/state')
    shutil.copytree(copy / '3/state', copy / '5/state')
    with pytest.raises(UserError, match='step differs from its checksum'):
        Checkpoints(copy).restore(make_state())
    with pytest.raises(UserError, match='params/embed differs from its checksum'):
        Checkpoints(copy).restore_params(make_state().params)


def test_an_array_that_orbax_has_lost_is_named(copy):
    index = copy / '5/state/_METADATA'
    index.write_text(index.read_text().replace('params/embed', 'params/embee'))
    with pytest.raises(UserError, match='5 is damaged .params/embed is missing.*goes on from step 3'):
        Checkpoints(copy).restore(make_state())


def test_every_flipped_bit_of_an_array_changes_its_checksum():
    for x in (jnp.zeros(7), jnp.arange(5, dtype=jnp.bfloat16), jnp.array([True, False]), jnp.int32(3)):
        seen, raw = {int(_checksum(x))}, np.asarray(x).tobytes()
        bits = range(8 * len(raw)) if x.dtype != bool else range(0, 8 * len(raw), 8)
        for bit in bits:
            flipped = bytearray(raw)
            flipped[bit // 8] ^= 1 << (bit % 8)
            seen.add(int(_checksum(jnp.asarray(np.frombuffer(bytes(flipped), x.dtype).reshape(x.shape)))))
        assert len(seen) == 1 + len(bits)
    assert _checksum(jnp.array([1.0, 2.0])) != _checksum(jnp.array([2.0, 1.0]))


def test_a_half_written_step_is_not_seen_and_cleaned_up_by_the_next_save(copy):
    leftover = copy / '7.orbax-checkpoint-tmp'  # the name Orbax writes under until a step is complete
    shutil.copytree(copy / '5', leftover)
    checkpoints = Checkpoints(copy)
    assert checkpoints.latest() == 5 and leftover.exists()
    checkpoints.save(7, make_state(7), meta={})
    assert checkpoints.steps() == [5, 7] and not leftover.exists()
    checkpoints.close()


SAVE_FOREVER = """
import itertools, sys
sys.path[:0] = [{root!r}, {tests!r}]
import jax.numpy as jnp
from score_jax.checkpoint import Checkpoints
checkpoints = Checkpoints({directory!r})
for step in itertools.count((checkpoints.latest() or 0) + 1):
    checkpoints.save(step, {{"params": {{"w": jnp.full((256, 1024), step)}}}}, meta={{"step": step}})
    print(step, flush=True)
"""


def test_a_run_killed_while_it_saves_leaves_a_checkpoint_to_go_on_from(tmp_path):
    program = SAVE_FOREVER.format(root=str(ROOT), tests=str(ROOT / 'tests'), directory=str(tmp_path))
    like = {'params': {'w': jnp.zeros((256, 1024), jnp.int32)}}
    newest = 0
    for delay in (0.0, 0.013, 0.029):
        run = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(4):
            assert run.stdout.readline()
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait()
        checkpoints = Checkpoints(tmp_path)
        state, meta = checkpoints.restore(like)
        assert checkpoints.latest() == meta['step'] >= newest + 3
        assert (state['params']['w'] == meta['step']).all()
        newest = meta['step']
