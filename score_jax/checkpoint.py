"""Checkpoints on top of Orbax: atomic, written in the background, verified when read.

    DIRECTORY/STEP/state/   the arrays, under flat names such as `params/layers/attention/q` (Orbax, OCDBT)
    DIRECTORY/STEP/meta/    JSON: the step, the caller's meta, the reward, and shape, dtype and checksum of every array

A step is written to a temporary directory and renamed when complete, so a killed run leaves no half-written
step. Only the first save touches the directory (creates it, clears temporary leftovers): looking at it or
restoring from it changes nothing, and is safe beside a run that writes there. `resume` alone, for that run itself,
moves what is damaged aside.

Several processes save and restore together, each the parts of the arrays that lie on its own devices, in a directory
that all of them see; what one of them cannot read is damaged for all.
"""

import functools
import hashlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from score_jax import processes
from score_jax.bits import mix, places
from score_jax.errors import UserError
from score_jax.streamed import Streamed, handler, made, save_args

PyTree = Any
_PART_BYTES = 1 << 26  # of an array that is summed at once


class Damaged(UserError):
    """The files of a checkpoint are not what was saved; `reason` says in what, without the path."""

    def __init__(self, text: str, reason: str):
        super().__init__(text)
        self.reason = reason


def exists(directory: Path) -> bool:
    """Whether `directory` holds a complete checkpoint."""
    return bool(_steps(epath.Path(directory)))


class Checkpoints:
    """Checkpoints of one stage: the latest `keep` and, if any was saved with a reward, the best by training reward."""

    def __init__(self, directory: Path, *, keep: int = 2):
        if keep < 1:
            raise UserError(f'keep = {keep}: at least one checkpoint must be kept; use 1 or more')
        self.directory = epath.Path(directory).absolute()
        self.keep = keep
        self._rewards: dict[int, float | None] = {}
        self._manager: ocp.CheckpointManager | None = None  # opened by the first save

    def steps(self) -> list[int]:
        """The complete steps, oldest first; waits for a save under way."""
        self.wait()
        return _steps(self.directory)

    def latest(self) -> int | None:
        """The newest complete step, None if there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the highest reward (ties: the later); `latest()` if none has a reward."""
        return self._best_of(self.steps())

    def save(self, step: int, state: PyTree, *, meta: dict, reward: float | None = None) -> None:
        """Starts saving `state`, any pytree of `jax.Array`s, which may be donated as soon as this returns.

        Of a tree of `Streamed` one array at a time is in memory, and all are written when this returns.
        `meta` is plain JSON and comes back as it is. A reward that is not finite counts as none. Raises `UserError`
        if `step` is not past the newest one (nothing is overwritten) or if this or the previous save cannot write.
        """
        newest = self.latest()
        if newest is not None and step <= newest:
            raise UserError(f'step {step} cannot be saved, {self.directory} already holds step {newest} and nothing is '
                            'overwritten: go on from there, move the later steps away or choose another directory')
        if json.loads(json.dumps(meta)) != meta:
            raise ValueError('meta must be plain JSON: no tuples, no keys other than strings, no NaN')
        reward = float(reward) if reward is not None and math.isfinite(reward) else None
        arrays, _ = _flatten(state)
        record = {'step': step, 'meta': meta, 'reward': reward, 'arrays': {
            name: {'shape': list(x.shape), 'dtype': str(x.dtype), 'checksum': _checksum(made(x))}
            for name, x in arrays.items()}}
        record['checksum'] = _record_checksum(record)
        self._rewards[step] = reward
        try:
            if self._manager is None:
                self._manager = self._open(streamed=any(isinstance(x, Streamed) for x in arrays.values()))
            self._manager.save(step, args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays, save_args=save_args(arrays)),
                meta=ocp.args.JsonSave(record)), force=True)
        except (OSError, ValueError) as error:
            processes.check(error)
            raise self._not_written(error) from error

    def restore(self, state_like: PyTree, *, step: int | None = None) -> tuple[PyTree, dict]:
        """(state, meta) of `step` (None: the latest), to the bit, on the shardings of `state_like`.

        `state_like` is the state to come, concrete or abstract (`jax.ShapeDtypeStruct` with a sharding); its mesh may
        differ from the one that saved. Raises `UserError` if there is no such checkpoint, if a name, shape or dtype
        differs; `Damaged` if the files are.
        """
        step, record = self._read_record(step)
        return self._read_arrays(step, record['arrays'], state_like), record['meta']

    def resume(self, state_like: PyTree) -> tuple[int, PyTree, list[str]] | None:
        """(step, state, warnings) of the newest step that is intact, to go on from; None if there is no step at all.

        Damaged ones after it are moved to a folder beside this one, so that their numbers are free again, and there is
        a warning for each. Raises `UserError` if all are damaged, and then moves none; else as `restore`.
        """
        damaged: dict[int, str] = {}
        for step in reversed(processes.agree(self.steps())):
            try:
                state, _ = self.restore(state_like, step=step)
            except Damaged as error:
                damaged[step] = error.reason
                continue
            return step, state, [
                f'checkpoint {self.directory / str(late)} is damaged ({reason}): moved to {self._move_aside(late)}, to '
                f'go on from step {step}' for late, reason in damaged.items()]
        if damaged:
            steps = '; '.join(f'step {step}: {reason}' for step, reason in damaged.items())
            raise UserError(f'every checkpoint in {self.directory} is damaged ({steps}): move it away, then the run '
                            'starts anew')
        return None

    def restore_params(self, params_like: PyTree, *, step: int | None = None) -> PyTree:
        """The `params` of the state saved at `step` (None: the latest), on the shardings and in the dtypes of
        `params_like`; nothing else is read. Errors as `restore`, except that a dtype may differ."""
        step, record = self._read_record(step)
        saved = {name: x for name, x in record['arrays'].items() if name.startswith('params/')}
        return self._read_arrays(step, saved, {'params': params_like}, cast=True)['params']

    def restore_param(self, name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        """One of `params()` at the latest step, `[...]` on the sharding of `like`; errors as `restore_params`."""
        step, record = self._read_record(None)
        name = f'params/{name}'
        saved = {key: x for key, x in record['arrays'].items() if key == name}
        return self._read_arrays(step, saved, {name: like}, cast=True)[name]

    def params(self, *, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of the parameters saved at `step` (None: the latest), by names such as `layers/query`."""
        _, record = self._read_record(step)
        return {name.removeprefix('params/'): jax.ShapeDtypeStruct(x['shape'], jnp.dtype(x['dtype']))
                for name, x in record['arrays'].items() if name.startswith('params/')}

    def meta(self, *, step: int | None = None) -> dict:
        """What was given with the state saved at `step` (None: the latest)."""
        return self._read_record(step)[1]['meta']

    def checksum(self) -> str:
        """That of the latest step, its meta and all its arrays; equal for equal checkpoints only."""
        return self._read_record(None)[1]['checksum']

    def wait(self) -> None:
        """Blocks until the save under way is complete; raises `UserError` if it could not be written."""
        try:
            if self._manager is not None:
                self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            processes.check(error)
            raise self._not_written(error) from error

    def close(self) -> None:
        """Waits and releases Orbax's threads."""
        processes.check(sys.exception())  # without the others no save comes to its end
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's `PreservationPolicy`: asked at each save, old steps go once the new one is complete."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep:], self._best_of(steps)}
        return [step in kept for step in steps]

    def _open(self, streamed: bool) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self, cleanup_tmp_directories=True, lightweight_initialize=True,
            enable_async_checkpointing=not streamed)
        handlers = {'state': handler(), 'meta': ocp.JsonCheckpointHandler()} if streamed else None
        return ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def _best_of(self, steps: list[int]) -> int | None:
        for step in steps:
            if step not in self._rewards:
                try:
                    self._rewards[step] = self._read_record(step)[1]['reward']
                except UserError:  # half deleted by a run killed while it removed old steps, or damaged
                    self._rewards[step] = None
        rewarded = [(self._rewards[step], step) for step in steps if self._rewards[step] is not None]
        return max(rewarded)[1] if rewarded else max(steps, default=None)

    def _read_record(self, step: int | None) -> tuple[int, dict]:
        steps = self.steps()
        if not steps:
            raise UserError(f'no checkpoint in {self.directory}: train that stage first or correct the path')
        if step is not None and step not in steps:
            raise UserError(f'no checkpoint of step {step} in {self.directory}: choose one of {steps}')
        step = steps[-1] if step is None else step
        try:
            record = ocp.JsonCheckpointHandler().restore(self.directory / str(step) / 'meta')
            intact = record['checksum'] == _record_checksum(record)
        except Exception as error:
            raise self._damaged(step, error) from error
        if not intact:
            raise self._damaged(step, 'meta differs from its checksum')
        if record.get('step', step) != step:  # the oldest ones do not say
            raise self._damaged(step, f'it is that of step {record["step"]}')
        return step, record

    def _read_arrays(self, step: int, saved: dict[str, dict], tree_like: PyTree, *, cast: bool = False) -> PyTree:
        """The arrays of `tree_like`, which must be those in `saved`; read in the saved dtype, verified, then cast."""
        like, treedef = _flatten(tree_like)
        there = {name: (x['dtype'], tuple(x['shape'])) for name, x in saved.items()}
        here = {name: (there[name][0] if cast and name in there else str(x.dtype), x.shape) for name, x in like.items()}
        for name in [*here, *there]:
            if there.get(name) != here.get(name):
                a, b = ('{}{}'.format(x[name][0], list(x[name][1])) if name in x else 'absent' for x in (there, here))
                raise UserError(f'checkpoint {self.directory / str(step)} does not fit this run: {name} is {a} there '
                                f'and {b} here; use the config it was saved with or another directory')

        arrays = []
        for name, x in like.items():  # one by one: only one array is there in both dtypes
            target = jax.ShapeDtypeStruct(x.shape, there[name][0], sharding=getattr(x, 'sharding', None))
            array = self._read_array(step, name, target)
            if (str(array.dtype), array.shape) != there[name] or _checksum(array) != saved[name]['checksum']:
                raise self._damaged(step, f'{name} differs from its checksum')
            arrays.append(array.astype(x.dtype))
        return treedef.unflatten(arrays)

    def _read_array(self, step: int, name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        """An array as it is in the files, where every process can read its parts of it; else `Damaged` in all."""
        sharding = like.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target, reason = {name: like.update(sharding=sharding)}, None
        try:
            # Without the barriers of a `Checkpointer`, at which the others would wait for one that cannot read.
            array = ocp.PyTreeCheckpointHandler().restore(
                self.directory / str(step) / 'state', args=ocp.args.PyTreeRestore(
                    target, restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True))[name]
            if not isinstance(array, jax.Array):  # Orbax returns the target where its own metadata has no such name
                reason = f'{name} is missing'
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # not the files: out of memory, a lost device
        except Exception as error:
            processes.check(error)
            reason = _reason(error)
        if reason := next(filter(None, processes.gather(reason)), None):
            raise self._damaged(step, reason)
        return array

    def _move_aside(self, step: int) -> epath.Path:
        """Where to; of several processes the first one moves it, and the others wait."""
        return processes.agree(self._moved(step) if processes.first() else None)

    def _moved(self, step: int) -> epath.Path:
        folder, taken = self.directory.with_name(f'{self.directory.name}-damaged'), 0
        folder.mkdir(parents=True, exist_ok=True)
        while (place := folder / (f'{step}-{taken}' if taken else f'{step}')).exists():
            taken += 1
        return (self.directory / str(step)).rename(place)

    def _damaged(self, step: int, reason: Exception | str) -> Damaged:
        before = [s for s in _steps(self.directory) if s < step]
        then = f'goes on from step {before[-1]}' if before else 'starts anew (there is no step before it)'
        reason = _reason(reason)
        return Damaged(f'checkpoint {self.directory / str(step)} is damaged ({reason}): '
                       f'move it away, then the run {then}', reason)

    def _not_written(self, reason: Exception) -> UserError:
        return UserError(f'no checkpoint could be written to {self.directory} ({_reason(reason)}): make room there '
                         'or choose another directory; the steps already there are untouched')


def _steps(directory: epath.Path) -> list[int]:
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(directory))


def _flatten(tree: PyTree) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Leaves by path, such as `opt_state/0/mu/head`, in the order of the tree."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): x for path, x in leaves}, treedef


def _checksum(x: jax.Array) -> int:
    """A uint32 over the bits of `x` and their positions, the same on any mesh.

    Integer sums are exact in any order, so each device reduces its own shard and nothing is copied to the host. The
    cost is one pass over the state at each save and restore. On CPU it needs scratch memory several times that of what
    is summed at once (XLA does not fuse there), so an array of one device is summed by parts. Any change within one
    32-bit word is found for certain (`mix` is a bijection), any other with probability 1 - 2**-32.
    """
    count = len(x) if x.ndim else 1
    rows = max(count * _PART_BYTES // max(x.nbytes, 1), 1)
    if rows >= count or len(x.sharding.device_set) > 1:
        return int(_checksum_of(x, 0, count))
    whole = sum(int(_checksum_of(x, start, rows)) for start in range(0, count - count % rows, rows))
    rest = int(_checksum_of(x, count - count % rows, count % rows)) if count % rows else 0
    return (whole + rest) % 2**32


@functools.partial(jax.jit, static_argnames=('rows',))
def _checksum_of(x: jax.Array, start, rows: int) -> jax.Array:
    """What `rows` entries of the first axis from `start` on add to the checksum."""
    offset = jnp.uint32(start) * jnp.uint32(math.prod(x.shape[1:]) % 2**32)
    if x.ndim and rows < len(x):
        x = jax.lax.dynamic_slice_in_dim(x, start, rows)
    bits = x.astype(jnp.uint8) if x.dtype == bool else x
    bits = jax.lax.bitcast_convert_type(bits, f'uint{8 * min(bits.dtype.itemsize, 4)}').astype(jnp.uint32)
    per_entry = math.prod(bits.shape) // max(math.prod(x.shape), 1)  # words; 2 where an entry has 8 bytes
    return jnp.sum(mix(bits ^ mix(places(bits.shape) + offset * jnp.uint32(per_entry))), dtype=jnp.uint32)


def _record_checksum(record: dict) -> str:
    record = {key: value for key, value in record.items() if key != 'checksum'}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception | str) -> str:
    """The first line of an error's cause, without the specs and objects that TensorStore and Orbax append to it."""
    while isinstance(error, Exception) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f'{error.strerror}: {error.filename}' if error.filename else error.strerror
    text = error if isinstance(error, str) else f'{type(error).__name__}: {error}'
    if found := re.search(r'([^:]*) \[os_error_code=', text):  # what the system said, behind what TensorStore was about
        return found[1].strip()
    return re.split(r'\n| \[|\. See full ', text.strip())[0]
