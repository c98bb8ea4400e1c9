"""From a config to the stages that it asks for, all checked before the first one runs."""

from __future__ import annotations

import os
from pathlib import Path

from score_jax import checkpoint, dry_run, plan, processes, progress, published, settings, store, study
from score_jax.baselines.pairs import Pairs
from score_jax.baselines.supervised import Supervised
from score_jax.errors import UserError
from score_jax.evaluate import Evaluation
from score_jax.mirror import Mirror
from score_jax.reinforce import Reinforce, ReinforceConfig, pretrained
from score_jax.sharding import MeshConfig
from score_jax.workdir import StageDirectory

KINDS = {'supervised': Supervised, 'pairs': Pairs, 'reinforce': Reinforce, 'evaluate': Evaluation}


def run(config, workdir: Path | str) -> None:
    """Runs a stage, or every stage of a pipeline in order; what is done already is skipped.

    Args:
      workdir: a folder; or an address such as gs://BUCKET/RUN, for which `mirror` keeps one.

    Raises:
      UserError: bad input, before any device work of any stage.
    """
    if not (address := store.address(workdir)):
        _in_folder(config, Path(workdir))
        return
    if processes.several():
        raise UserError(
            f'--workdir={address} is an address, which a run of one process alone can use; for several, mount the '
            'bucket as a folder (docs/scale.md says how), and name that.')
    with Mirror(address) as copy:
        try:
            copy.pull()
            progress.say(f'{address} is copied from and to {copy.folder}')
            _in_folder(config, copy.folder, copy)
            copy.push()
        except UserError as error:
            raise UserError(str(error).replace(f'--workdir={copy.folder}', f'--workdir={address}')) from error
        except OSError as error:
            raise UserError(
                f'{address}: {store.reason(error)}; once that is mended, the same command goes on from there.'
            ) from error


def _in_folder(config, workdir: Path, mirror: Mirror | None = None) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f'--workdir={workdir} is a file; it must be a folder, or not exist yet.')
    there = next(folder for folder in (workdir.absolute(), *workdir.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f'--workdir={workdir} cannot be written: {there} is not yours to write to; choose another.')
    if config.get('kind') == 'study':
        _study(config, workdir, mirror)
    else:
        _run(config, workdir, mirror)


def _study(config, workdir: Path, mirror: Mirror | None) -> None:
    """A pipeline for each seed, in a folder of its own, and the tables over all seeds that have results."""
    seeds = config.get('seeds')
    numbers = isinstance(seeds, (tuple, list)) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not numbers or not seeds or len({*seeds}) < len(seeds):
        raise UserError(
            f'config.seeds is {seeds!r}; it must be a tuple of different seeds, at least one, each an integer from 0 '
            'on.')
    for seed in seeds:
        config.seed = seed  # the sections follow
        progress.say(f'study: seed {seed} of {tuple(seeds)}')
        _run(config, study.folder(workdir, seed), mirror)
        if not processes.first():
            continue
        progress.say(f'study: {study.write(workdir)[1]} has the tables of all seeds that have results')


def _run(config, workdir: Path, mirror: Mirror | None) -> None:
    sections = _sections(config, workdir)
    if dry := [section for section in sections if section.get('dry_run')]:  # and no other stage runs
        plan.pretend(settings.read(MeshConfig, dry[0].mesh, 'config.mesh'))
        sections = [section for section in dry if not _by_name(section)]
    stages = [_build(section, workdir, alone=len(sections) == 1) for section in sections]
    for stage in stages:
        run_stage(stage, mirror)


def _by_name(section) -> bool:
    """Reports on a stage whose model is not here, from the published shape of a model of that name, if one is known."""
    if found := published.work(section):
        progress.say(
            f'{section.stage}: no {section.pretrained} here; the published shape of that name, and rows as long as the '
            f'config allows: {dry_run.report(found, section.mesh.name)}')
    return bool(found)


def run_stage(stage, mirror: Mirror | None = None) -> None:
    """Runs one stage, in a folder that `mirror` may be of.

    Raises:
      UserError: what it raises; also for a full disk, or a file that is gone or may not be written.
      Interrupted: a signal said so, and the state is saved.
    """
    stage.directory.mirror = mirror
    try:
        stage.run()
        stage.directory.push()
    except OSError as error:
        raise UserError(
            f'{stage.config.stage}: {error.strerror or error} ({error.filename or stage.directory.path}); once that is '
            'mended, the same command goes on from the last checkpoint.') from error


def _build(section, workdir: Path, alone: bool):
    kind = section.get('kind')
    if kind not in KINDS:
        raise UserError(f'config.kind is {kind!r}; it must be one of {", ".join([*KINDS, "pipeline", "study"])}.')
    try:
        return KINDS[kind](section, workdir)
    except UserError as error:
        raise error if alone else UserError(f'{error} (in the section of {section.get("stage")})') from None


def _sections(config, workdir: Path) -> list:
    """The configs of the stages to run: those of a pipeline; a stage with what must come before it."""
    if config.get('kind') in ('pipeline', 'study'):
        unread = set(config.keys()) - {'kind', 'order', 'seeds', *settings.SHARED, *config.order}
        if unread or not set(config.order) <= set(config.keys()):
            raise UserError(
                f'config.order is {tuple(config.order)}; it must name sections of the config, and every section '
                f'({", ".join(sorted(unread)) or "none left over"}).')
        made = {'base'} if config.pretrained else set()
        return [config[name] for name in config.order if name not in made]
    if config.get('kind') != 'reinforce':
        return [config]
    settings.read(ReinforceConfig, config)  # names what is missing before anything is looked for
    made = not pretrained(config) and not config.dry_run and config.before.get('stage') == config.start_from
    before = config.before if made else {}  # of another stage than start_from it would be made for nothing
    if before and not checkpoint.exists(StageDirectory(workdir, config.start_from, {}).checkpoints):
        progress.say(f'{config.stage}: {workdir} has no {config.start_from} to start from; it is made first')
        return [before, config]
    if before and _unfinished(before, workdir):
        progress.say(f'{config.stage}: {config.start_from} in {workdir} is not finished; it goes on first')
        return [before, config]
    return [config]


def _unfinished(section, workdir: Path) -> bool:
    directory = StageDirectory(workdir, section.stage, {}).checkpoints
    return (checkpoint.Checkpoints(directory).latest() or 0) < section.steps
