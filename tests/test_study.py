"""The tables of a study say what the rows of its seeds say."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from configs import study as config
from score_jax import run, study
from score_jax.errors import UserError


def row(method, seed, t1, t2, temperature=1.0):
    return {'method': method, 'seed': seed, 'temperature': temperature, 'n': 100, 't1': t1, 't2': t2, 'delta': t2 - t1,
            'i_to_c': 0.1, 'c_to_i': 0.0, 'changed': 0.5, 'by': {'level': {}}}


ROWS = [row('base', 0, 0.3, 0.2), row('stage2', 0, 0.5, 0.6), row('base', 1, 0.4, 0.2), row('stage2', 1, 0.5, 0.7),
        row('base', 2, 0.3, 0.3), row('stage2', 2, 0.6, 0.7), row('stage2', 0, 0.7, 0.7, 0.0)]


@pytest.fixture
def workdir(tmp_path):
    for seed in range(3):
        folder = study.folder(tmp_path, seed)
        folder.mkdir()
        (folder / 'results.json').write_text(json.dumps([row for row in ROWS if row['seed'] == seed]))
    return tmp_path


def test_intervals_are_those_of_student_over_seeds():
    values = [0.2, 0.25, 0.4]
    got = study.estimate(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    np.testing.assert_allclose((got.mean, got.low, got.high), (np.mean(values), low, high))
    assert np.isnan(study.estimate([0.2]).low)


def test_differences_from_score_are_paired_by_seed(workdir):
    table = study.summary(study.collect(workdir), 1.0)
    assert list(table) == ['base', 'score']
    differences = [0.4, 0.5, 0.4]
    got = table['base']['t2_below']
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    np.testing.assert_allclose((got.mean, got.low, got.high), (np.mean(differences), low, high))
    assert 't2_below' not in table['score']


def test_a_seed_without_the_method_is_in_no_difference(workdir):
    rows = [row for row in study.collect(workdir) if not (row['method'] == 'base' and row['seed'] == 1)]
    table = study.summary(rows, 1.0)
    np.testing.assert_allclose(table['base']['t2_below'].mean, 0.4)
    assert [table[name]['t2'].seeds for name in ('base', 'score')] == [2, 3] and table['base']['t2_below'].seeds == 2
    lines = study.tables(rows).splitlines()
    assert [line.split(' | ')[1] for line in lines if line.startswith(('| base', '| SCoRe'))] == ['2', '3', '1']


def test_a_row_says_whether_it_goes_the_way_of_the_paper():
    def estimate(mean, reach):
        return study.Estimate(mean / 100, (mean - reach) / 100, (mean + reach) / 100, 5)

    def said(delta, below, paper):
        return study.agreement({'delta': estimate(*delta), 't2_below': estimate(*below)}, paper)

    better, worse, copies = (60.0, 62.0, 2.0), (60.0, 58.0, -2.0), (60.0, 60.4, 0.4)
    assert said((3, 1), (4, 1), better) == said((-3, 1), (4, 1), worse) == 'delta yes, t2 yes'
    assert said((3, 1), (-4, 1), worse) == 'delta no, t2 no'
    assert said((3, 4), (4, np.nan), better) == 'delta open, t2 open'
    assert said((0.9, 3), (4, 1), copies) == 'delta yes, t2 yes' and said((-1.1, 0.1), (4, 1), copies)[:8] == 'delta no'
    assert said((3, 1), (4, 1), ()) == '' and said((0.5, 1), (4, 1), study.METHODS['multi_turn'].paper) == 'delta yes'
    assert study.agreement({'delta': estimate(3, 1)}, study.METHODS['score'].paper) == 'delta yes'


def test_a_table_says_how_many_problems_and_samples_it_stands_on():
    rows = [row | {'samples_per_problem': 4} if row['temperature'] else row for row in ROWS]
    assert [line for line in study.tables(rows).splitlines() if line.startswith('#')] == [
        '## Temperature 1, 100 held-out problems a seed, 4 samples of each', '## Greedy, 100 held-out problems a seed']


def test_all_files_are_written_and_stage_2_is_named_score(workdir):
    for path in study.write(workdir):
        assert path.stat().st_size > 100
    rows = json.loads((workdir / 'study.json').read_text())
    assert rows == [{key: row[key] for key in row if key != 'by'} | {'method': row['method'].replace('stage2', 'score')}
                    for seed in range(3) for row in ROWS if row['seed'] == seed]
    text = (workdir / 'study.md').read_text()
    assert '| base | 3 | 33.3 [19.0, 47.7] | 23.3' in text
    assert '60 / 64.4 / 4.4' in text
    assert '<svg' in (workdir / 'study.html').read_text()


def test_the_tables_that_are_kept_are_those_of_the_rows_that_are_kept():
    folder = Path(__file__).parents[1] / 'benchmarks'
    assert study.tables(json.loads((folder / 'study.json').read_text())).strip() in (folder / 'study.md').read_text()


def test_a_method_of_ones_own_and_markup_in_its_name_stand_as_they_are(workdir):
    path = study.folder(workdir, 0) / 'results.json'
    path.write_text(json.dumps([*json.loads(path.read_text()), row('<b>mine</b>', 0, 0.1, 0.1)]))
    study.write(workdir)
    page = (workdir / 'study.html').read_text()
    assert '&lt;b&gt;mine&lt;/b&gt;' in page and '<b>mine' not in page


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(UserError, match='has no seedN/results.json; run configs/study.py first'):
        study.write(tmp_path)


def test_every_seed_has_its_folder_and_every_section_its_seed(tmp_path, monkeypatch):
    seen = []

    class Section:
        def __init__(self, section, workdir):
            self.what = (workdir.name, section.seed, section.stage)
            self.directory = SimpleNamespace(push=lambda: None)

        def run(self):
            seen.append(self.what)

    monkeypatch.setattr(run, 'KINDS', dict.fromkeys(run.KINDS, Section))
    monkeypatch.setattr(study, 'write', lambda workdir: [workdir] * 4)
    made = config.get_config()
    made.seeds = (3, 5)
    run.run(made, tmp_path)
    stages = [made[name].stage for name in made.order]
    assert seen == [(f'seed{seed}', seed, stage) for seed in (3, 5) for stage in stages]
    assert set(made['evaluate'].methods) == {'self_refine', *stages} - {'evaluation'}


@pytest.mark.parametrize('seeds', [(), (1, 1), 3, ('a',), (-1,), (0.5,), ([1],)])
def test_seeds_that_make_no_sense_are_said(seeds, tmp_path):
    made = config.get_config()
    with made.ignore_type():
        made.seeds = seeds
    with pytest.raises(UserError, match='config.seeds is'):
        run.run(made, tmp_path)
