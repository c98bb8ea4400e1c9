"""A report tells what is in the workdir, shows no more and no less when files are missing, and lets no text act."""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from score_jax import jsonl, plot_style, plots, plots_evaluation, report, report_html, report_measures
from score_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
KINDS = ('i->c', 'c->i', 'c->c', 'i->i')
RIGHT, WRONG = '3 * 5 = 15 + 2 = 17', '3 * 5 = 16 + 2 = 18'


def lines(path: Path, rows: list[dict], tail: str = '') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)


def rl_rows(stage: str, count: int) -> list[dict]:
    return [dict(stage=stage, step=step, steps=count, t1=0.4, t2=0.3 + 0.2 * step / count, delta=-0.1, i_to_c=0.1,
                 c_to_i=0.1, changed=0.5, kl_turn1=0.1, kl_turn2=-0.01, length_turn1=9.0, length_turn2=None,
                 truncated_turn1=float('nan'), truncated_turn2=0.0) for step in range(1, count + 1)]


def result(method: str, temperature: float, **values: float) -> dict:
    row = dict(method=method, seed=0, temperature=temperature, n=1000)
    for key, value in values.items():
        row |= {key: value, f'{key}_low': value - 0.02, f'{key}_high': value + 0.02}
    return row


def sample(kind: str, method: str = 'stage2', temperature: float = 1.0, name: str = '', **extra) -> dict:
    turns = [dict(response=RIGHT if end == 'c' else WRONG, outcome='correct' if end == 'c' else 'wrong',
                  reward=float(end == 'c'), read='(3 * 5) + 2', tokens=9, truncated=False) for end in kind.split('->')]
    return dict(problem=f'Make 17. {name}', turns=turns, instruction='Look again.', method=method,
                temperature=temperature) | extra


def scaling_row(*deltas: float, method: str = 'stage2') -> dict:
    """A vote of 2, 4, ... responses, each difference give or take 2 points."""
    votes = [dict(budget=2 << place, rollouts=1 << place) | {
        name: value for key, figure in (('parallel', 0.5), ('sequential', 0.5 + delta), ('delta', delta))
        for name, value in ((key, figure), (f'{key}_low', figure - 0.02), (f'{key}_high', figure + 0.02))}
        for place, delta in enumerate(deltas)]
    passed = [dict(k=k, accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6) for k in (1, 2, 4)]
    return dict(method=method, seed=0, temperature=0.7, n=200, samples=64, turns=2, pass_at_k=passed, vote=votes)


def make_run(workdir: Path) -> Path:
    base = [dict(stage='base', step=step, steps=50, loss=3 - step / 50) for step in range(1, 51)]
    lines(workdir / 'base' / 'metrics.jsonl', base)
    lines(workdir / 'stage1' / 'metrics.jsonl', rl_rows('stage1', 60))
    lines(workdir / 'stage2' / 'metrics.jsonl', rl_rows('stage2', 5), tail='{"stage": "stage2", "step": 6, "t1": 0.')
    for stage in ('base', 'stage1', 'stage2'):
        (workdir / stage / 'config.json').write_text(json.dumps({'alpha': 10.0, 'note': '<b>bold</b>'}))
    rows = [result('stage2', 0.0, t1=0.6, t2=0.672, delta=0.072, i_to_c=0.081, c_to_i=0.009, changed=0.25),
            result('base', 0.0, t1=0.5, t2=0.45, delta=-0.05, i_to_c=0.03, c_to_i=0.08, changed=0.4),
            result('base', 1.0, t1=0.4, t2=0.34, delta=-0.06, i_to_c=0.03, c_to_i=0.09, changed=0.4)]
    group = result('', 0.0, t1=0.3, t2=0.4)
    rows[0]['delta_p'] = 0.0004
    rows[2] |= result('base', 1.0, truncated_turn1=0.1, no_answer_turn2=0.0, edit_distance=0.2) | {
        'by': {'level': {'1': group, '2': group}}, 'edit_histogram': dict.fromkeys(KINDS, [3, 0, 1, 2])}
    (workdir / 'results.json').write_text(json.dumps(rows))
    (workdir / 'attempts.json').write_text(json.dumps([result('stage2', 0.0, t1=0.5, t2=0.6, t3=0.55, delta=0.05)]))
    (workdir / 'scaling.json').write_text(json.dumps([scaling_row(-0.02, 0.05, 0.06)]))
    samples = [sample(kind, method, temperature, name=f'{method}-{temperature}-{place}') for place in range(30)
               for kind in KINDS for method in ('base', 'stage2') for temperature in (0.0, 1.0)]
    lines(workdir / 'evaluation' / 'samples.jsonl', samples)
    return workdir


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> tuple[Path, str]:
    """(workdir, its page)."""
    workdir = make_run(tmp_path_factory.mktemp('run'))
    before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
    page = report.write(workdir).read_text(encoding='utf-8')
    assert {path: path.read_bytes() for path in before} == before  # only reads what it reports
    return workdir, page


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch, request):
    """Drawing takes most of a report's time: only where all looks of a figure matter are all of them drawn."""
    if 'writing_again' in request.node.name or 'without_data' in request.node.name:
        return
    draw, kept = report._draw, {}

    def once(measured, curves, look):
        if id(curves) not in kept:
            kept[id(curves)] = curves, draw(measured, curves, plot_style.PAGE)
        return kept[id(curves)][1]
    monkeypatch.setattr(report, '_draw', once)


def page_of_samples(workdir: Path, samples: list[dict]) -> str:
    lines(workdir / 'evaluation' / 'samples.jsonl', samples)
    return report.write(workdir).read_text(encoding='utf-8')


def body_text(page: str) -> str:
    return html.unescape(re.sub(r'<[^>]*>', ' ', page[page.index('<body>'):]))


class Checker(HTMLParser):
    """Collects every tag and address; fails on a tag that is closed out of order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.open = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ('src', 'href', 'srcset', 'action', 'data')]
        if tag not in ('meta', 'img', 'source', 'link', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# --- the page as a whole


def test_page_is_self_contained(run):
    _, page = run
    checker = Checker(page)
    assert not set(checker.tags) & {'script', 'link', 'iframe', 'object', 'embed', 'base'}
    assert checker.addresses
    assert all(address.startswith(('#', 'data:image/png;base64,')) for address in checker.addresses)
    assert 'url(' not in page and '@import' not in page


def test_page_has_every_section_and_chart(run):
    _, page = run
    for section in ('results', 'measures', 'training', 'transcripts', 'configs'):
        assert f'<section id="{section}">' in page and f'href="#{section}"' in page
    for chart in (*plots_evaluation.CHARTS, *plots.CHARTS):
        assert (f'<h3>{chart.title}</h3>' in page) == (chart.name != 'entropy'), chart.name  # nothing logged it
    assert page.count('<details><summary>') == 3 + 1 + page.count('<summary>The numbers</summary>')  # configs, level
    assert '&lt;b&gt;bold&lt;/b&gt;' in page


def test_charts_are_files_too_for_the_screen_and_for_print(run):
    workdir, page = run
    names = {chart.name for chart in (*plots_evaluation.CHARTS, *plots.CHARTS)} - {'entropy'}
    files = {path.name: path.read_bytes() for path in (workdir / 'report').iterdir()}
    assert files.keys() == {f'{name}.{kind}' for name in names for kind in ('png', 'pdf')}
    assert all(data.startswith(b'\x89PNG' if name.endswith('png') else b'%PDF') for name, data in files.items())
    assert page.count('data:image/png;base64,') == len(names)


def test_writing_again_gives_the_same_page_and_files(run, tmp_path):
    before, page = run
    workdir = shutil.copytree(before, tmp_path / before.name)
    assert report.write(workdir).read_text() == page
    files = {path.name: path.read_bytes() for path in (before / 'report').iterdir()}
    assert {path.name: path.read_bytes() for path in (workdir / 'report').iterdir()} == files


def test_charts_without_data_go(tmp_path):
    lines(tmp_path / 'base' / 'metrics.jsonl', [dict(step=1, loss=2.0)])
    results = tmp_path / 'results.json'
    results.write_text(json.dumps([dict(method='base', temperature=1.0, t1=0.5, t2=0.5)]))
    report.write(tmp_path)
    results.unlink()
    for names in ({'base_loss', 'evaluation'}, {'base_loss'}):
        assert {path.name for path in (tmp_path / 'report').iterdir()} == {
            f'{name}.{kind}' for name in names for kind in ('png', 'pdf')}
        report.write(tmp_path)


def test_does_not_import_jax():
    code = "import sys, score_jax.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


# --- the table


def cells(page: str, temperature: str, method: str) -> list[tuple[str, str]]:
    """(value, interval) of each column of one row."""
    table = page[page.index(f'<h3>{temperature}</h3><table>'):].split('</table>')[0]
    row = next(row for row in table.split('<tr>') if f'<th scope=row>{method}<' in row)
    return re.findall(r'<td[^>]*><b[^>]*>([^<]*)</b><small>([^<]*)</small>', row)


def test_table_has_every_number_with_its_interval(run):
    _, page = run
    assert cells(page, 'Greedy', 'stage2') == [
        ('60.0', '58.0–62.0'), ('67.2', '65.2–69.2'), ('+7.2', '+5.2 to +9.2'), ('8.1', '6.1–10.1'),
        ('0.9', '−1.1–2.9'), ('25.0', '23.0–27.0')]
    sampled = [value for value, _ in cells(page, 'Temperature 1', 'base')]
    assert sampled == ['40.0', '34.0', '−6.0', '3.0', '9.0', '40.0']
    greedy = page[page.index('<h3>Greedy</h3>'):page.index('<h3>Temperature 1</h3>')]
    assert greedy.index('>base<') < greedy.index('>stage2<')  # as trained, not as in the file
    assert 'n = 1,000' in greedy and '<small>p &lt; 0.001</small>' in greedy


def test_signed_never_shows_minus_zero():
    assert [report_html.signed(value) for value in (-0.04, 0.0, 1.26, -1.26, float('nan'))] == [
        '0.0', '0.0', '+1.3', '−1.3', '–']


def test_seed_is_named_where_a_method_has_several():
    rows = [dict(method='base', seed=0), dict(method='stage2', seed=0), dict(method='stage2', seed=1)]
    assert [plot_style.row_label(row, rows) for row in rows] == ['base', 'stage2 · seed 0', 'stage2 · seed 1']


# --- what the numbers say


@pytest.mark.parametrize('t1, delta, changed, tone, words', [
    (0.6, 0.07, 0.2, 'good', 'the second attempt is better'),
    (0.6, -0.07, 0.2, 'bad', 'the second attempt is worse'),
    (0.6, 0.01, 0.2, 'plain', 'no clear difference'),
    (0.3, 0.20, 0.2, 'bad', 'bought by failing first'),
    (0.6, 0.01, 0.001, 'bad', 'collapse into copying'),
])
def test_findings(t1, delta, changed, tone, words):
    rows = [result('base', 0.0, t1=0.5, t2=0.5, delta=0.0, changed=0.3),
            result('stage2', 0.0, t1=t1, t2=t1 + delta, delta=delta, changed=changed)]
    assert [said for said in report.findings(rows, {}) if said[0] == tone and words in said[1]]


def test_finding_names_the_seed_and_compares_it_with_its_own_base():
    rows = [result(method, 0.0, t1=t1, t2=0.9, delta=0.1) | dict(seed=seed)
            for method, t1, seed in (('base', 0.1, 0), ('base', 0.5, 1), ('stage2', 0.8, 1), ('stage2', 0.8, 2))]
    said = [sentence for _, sentence in report.findings(rows, {})]
    assert said[0].startswith('stage2 · seed 1 (greedy)') and 'from 50.0 % of the base to 80.0 %' in said[1]


def test_groups_of_problems_have_tables_of_their_own(tmp_path):
    group = result('', 0.0, t1=0.25, t2=0.5, delta=0.25, i_to_c=0.25, c_to_i=0.0, changed=0.5)
    row = result('stage2', 0.0, t1=0.6, t2=0.672, delta=0.072, i_to_c=0.081, c_to_i=0.009, changed=0.25)
    row |= {
        'samples_per_problem': 4, 'dropped': 3, 'by': {'level': {'5': group | {'n': 70}, 'odd': 7}, 'subject': None}}
    (tmp_path / 'results.json').write_text(json.dumps([row]))
    page = report.write(tmp_path).read_text()
    assert 'n = 1,000, 4 samples each, 3 not graded' in page
    assert '<summary>stage2 by level</summary>' in page and 'by subject' not in page
    assert re.search(r'<th scope=row>5<small>n = 70</small></th>.*?<b>25.0</b>', page)


def test_findings_tell_of_missing_answers_and_of_gradings_that_failed(tmp_path):
    rows = [row | {'no_answer_turn1': 0.5, 'dropped': 2} for row in rl_rows('stage1', 10)]
    lines(tmp_path / 'stage1' / 'metrics.jsonl', rows)
    text = report.write(tmp_path).read_text()
    assert 'In 50 % of the responses' in text and '20 rollouts were dropped' in text


def test_findings_warn_of_truncation_even_if_one_turn_logged_none():
    columns = dict(step=np.arange(3.0), t1=np.ones(3), truncated_turn1=np.full(3, np.nan),
                   truncated_turn2=np.full(3, 0.3))
    assert '30 % of the responses were cut off at the end of stage1' in report.findings([], {'stage1': columns})[-1][1]


# --- more turns than two, and more measured


def test_every_turn_of_three_has_its_column_and_its_word(tmp_path):
    row = result('stage2', 0.0, t1=0.5, t2=0.4, t3=0.61, delta=0.11)
    (tmp_path / 'results.json').write_text(json.dumps([row, result('self_refine', 0.0, t1=0.3, t2=0.2, delta=-0.1)]))
    curves = [dict(row, t3=0.6, kl_turn3=0.1) for row in rl_rows('stage2', 10)]
    lines(tmp_path / 'stage2' / 'metrics.jsonl', curves)
    turns = [dict(response=text, outcome='wrong', read=text) for text in ('a b', 'a c', 'a d')]
    page = page_of_samples(tmp_path, [dict(sample('i->i'), turns=turns)])
    assert cells(page, 'Greedy', 'stage2')[:4] == [
        ('50.0', '48.0–52.0'), ('40.0', '38.0–42.0'), ('61.0', '59.0–63.0'), ('+11.0', '+9.0 to +13.0')]
    assert '<th scope=col>accuracy@t3</th>' in page
    assert '61.0 % at the last; delta +11.0 points: the last attempt is better' in html.unescape(page)
    assert 'class="turn turn3"' in page and 'a <mark>d</mark>' in page and 'against turn 2' in page


def test_three_turns_in_training_end_with_the_third(tmp_path):
    curves = [dict(row, t3=0.625) for row in rl_rows('stage2', 10)]
    lines(tmp_path / 'stage2' / 'metrics.jsonl', curves)
    assert '62.5 % at the last' in report.write(tmp_path).read_text()


@pytest.mark.parametrize('deltas, tone, words', [
    ((-0.05, 0.03, 0.05), 'good', 'in a row is better from 4 responses on'),
    ((0.05, 0.01, 0.05), 'good', 'from 8 responses on'),
    ((0.05, 0.05, 0.01), 'plain', 'not clearly better'),
    ((0.05, -0.05), 'bad', 'in a row is worse'),
])
def test_a_finding_says_whether_attempts_in_a_row_pay(deltas, tone, words):
    (said,) = report_measures.sequential_finding([scaling_row(0.1, method='base'), scaling_row(*deltas)], 'stage2')
    assert said[0] == tone and words in said[1] and f'A vote of {2 << len(deltas) - 1} responses' in said[1]
    assert report_measures.sequential_finding([scaling_row(0.1)], 'stage1') == []


def test_numbers_stand_beside_the_charts(run):
    _, page = run
    closer = page[page.index('<section id="measures">'):page.index('<section id="training">')]
    assert closer.count('<summary>The numbers</summary>') == 5
    for words in ('stage2, temperature 0.7, 200 problems, 64 samples each', '<th scope=row>8</th>', 'data-label="t3"',
                  'data-label="cut off 1"', 'data-label="k = 4"'):
        assert words in closer
    assert 'A vote of 8 responses by stage2' in page


def test_feedback_is_shown_and_not_graded(tmp_path):
    page = page_of_samples(tmp_path, [sample('i->c', 'self_refine') | {'feedback': 'The <b>sum</b> is off.'}])
    article = page[page.index('<article>'):].split('</article>')[0]
    assert 'Feedback, not graded' in article and 'The &lt;b&gt;sum&lt;/b&gt; is off.' in article
    assert article.index('Feedback') < article.index('Instruction') < article.index('Turn 2')


@pytest.mark.parametrize('damage', [
    '[{"method": "x"', '3', '[{"method": "x"}]',
    '[{"method": "x", "vote": 3, "pass_at_k": [1, {"k": -1, "accuracy": 1}]}]',
    '[{"method": "x", "t1": 1e999, "by": [], "edit_histogram": {"i->c": ["a"], "c->i": []}}]',
    '[{"method": "x", "temperature": 0, "t1": 0.5, "t2": 0.5, "edit_histogram": {"i->c": [1, 2], "c->i": [1]}}]',
    '[{"method": "$x_{", "temperature": 0, "t1": 0, "by": {"$k": {"$a^": {"t1": 0}, "b": {"t1": 1}}}}]'])
def test_damaged_rows_of_what_was_measured_are_left_out(tmp_path, damage):
    lines(tmp_path / 'base' / 'metrics.jsonl', [dict(step=1, loss=2.0)])
    for name in ('results', 'attempts', 'scaling'):
        (tmp_path / f'{name}.json').write_text(damage)
    Checker(report.write(tmp_path).read_text())


# --- curves


def test_curves_of_a_resumed_run_use_the_later_line(tmp_path):
    lines(tmp_path / 'metrics.jsonl', [dict(step=1, t1=0.1), dict(step=2, t1=0.2), dict(step=3, t1=0.9),
                                       dict(step=2, t1=0.5), dict(note='no step')], tail='{"step": 4, "t1"')
    curves = report.read_curves(tmp_path / 'metrics.jsonl')
    assert curves['step'].tolist() == [1, 2, 3] and curves['t1'].tolist() == [0.1, 0.5, 0.9]


def test_smooth_is_a_centred_mean_that_skips_nan():
    values = np.arange(80.0)
    np.testing.assert_allclose(plots.smooth(values)[2:-2], values[2:-2])
    assert plots.smooth(values)[0] == 1.0  # mean of 0, 1, 2
    values[40] = np.nan
    smooth = plots.smooth(values)
    assert np.isnan(smooth[40]) and np.isfinite(np.delete(smooth, 40)).all()
    assert plots.smooth(values)[41] == np.mean([39, 41, 42, 43])


def test_stages_are_in_the_order_of_training():
    names = ['zeta', 'stage10', 'stage2', 'base', 'stage1b', 'stage1']
    assert sorted(names, key=report.stage_order) == ['base', 'stage1', 'stage1b', 'stage2', 'stage10', 'zeta']


def test_base_level_is_that_of_the_temperature_of_training():
    rows = [dict(method='base', temperature=0.0), dict(method='stage2', temperature=1.0),
            dict(method='base', temperature=0.9)]
    assert plots.base_row(rows)['temperature'] == 0.9
    assert plots.base_row(rows[1:2]) == {}


# --- transcripts


def shown_kinds(page: str) -> dict[str, int]:
    parts = re.split(r'<h3 class="kind">[^<]*<span>(.→.)</span>', page)
    return {kind.replace('→', '->'): part.count('<article>') for kind, part in zip(parts[1::2], parts[2::2])}


def test_five_transcripts_of_each_kind_from_the_last_method_at_temperature_1(run):
    _, page = run
    assert shown_kinds(page) == dict.fromkeys(KINDS, 5)
    assert page.count('stage2 · temperature 1<') == 20
    shown = re.findall(r'stage2-1\.0-\d+', page)
    assert len(shown) == 20 and len(set(shown)) > 5  # drawn from the whole file, not its first five


def test_transcript_shows_all_that_was_said_and_the_verdicts(run):
    _, page = run
    article = page[page.index('<article>'):].split('</article>')[0]
    said = re.sub(r'\s+', ' ', body_text('<body>' + article))
    for words in ('Make 17.', WRONG, 'Look again.', '✗ wrong', '✓ correct', 'read: (3 * 5) + 2', '9 tokens'):
        assert words in said
    assert '3 * 5 = <mark>15</mark> + 2 = <mark>17</mark>' in article
    assert 'against turn 1: 2 tokens new, 2 gone' in article


def test_every_kind_that_exists_is_shown_and_places_are_filled():
    samples = [sample('i->i')] * 40 + [sample('c->c')] * 2 + [sample('i->c', 'base', 0.0)] * 9
    chosen = [row['kind'] for row in report.choose(report.reservoir(samples))]
    assert {kind: chosen.count(kind) for kind in chosen} == {'i->c': 1, 'c->c': 2, 'i->i': 17}


def test_fewer_samples_than_places_are_all_shown():
    samples = [sample('i->i', name=str(place)) for place in range(3)] + [sample('c->i', 'base')] * 8
    assert len(report.choose(report.reservoir(samples))) == 11


def test_reservoir_is_bounded_deterministic_and_draws_from_everywhere():
    def stream():
        return (sample('i->c', name=str(place), place=place) for place in range(5000))
    kept = report.reservoir(stream())
    (samples,) = kept.values()
    assert kept == report.reservoir(stream()) and len(samples) == report.TRANSCRIPTS
    assert max(row['place'] for row in samples) > 4000 and min(row['place'] for row in samples) < 1000


def test_samples_of_training_stand_in_and_are_the_latest(tmp_path):
    for stage in ('stage1', 'stage2'):
        rows = [sample('i->c', step=step, stage=stage) for step in range(100)]
        lines(tmp_path / stage / 'samples.jsonl', [{k: v for k, v in row.items() if k not in ('method', 'temperature')}
                                                   for row in rows])
    page = report.write(tmp_path).read_text()
    assert [f'stage2 · training step {step}<' in page for step in (99, 80, 79)] == [True, True, False]
    assert 'stage1 · training' not in page


@pytest.mark.parametrize('first, second, expected', [
    ('a b c', 'a b c', ('a b c', 0, 0)),
    ('a b c', 'a x y c', ('a <mark>x y</mark> c', 2, 1)),
    ('a b', '  a x', ('  a <mark>x</mark>', 1, 1)),
    ('a', 'x\na', ('<mark>x</mark>\na', 1, 0)),
    ('a b', 'a ', ('a ', 0, 1)),
    ('', 'a < b', ('<mark>a &lt; b</mark>', 3, 0)),
    ('a', '', ('', 0, 1)),
])
def test_marked_tokens(first, second, expected):
    assert report_html.marked(first, second) == expected


def test_long_responses_keep_their_beginning_and_end(tmp_path):
    long = sample('i->i')
    long['turns'][0]['response'] = 'BEGIN ' + 'word ' * 200_000 + 'END'
    page = page_of_samples(tmp_path, [long])
    assert 'BEGIN word' in page and 'word END' in page and 'characters left out' in page and len(page) < 100_000


# --- hostile and damaged input


def test_text_of_a_model_cannot_act(tmp_path):
    bad = sample('i->c')
    attack = '<script>alert(1)</script><img src=x onerror=y>\x1b[31mred\x07\x9b0m\u202eevil\ud800'
    for turn in bad['turns']:
        turn |= dict(response=attack, read=attack, outcome=turn['outcome'])
    bad['turns'][0]['outcome'] = attack
    bad |= dict(problem=attack, instruction=attack, method=attack)
    (tmp_path / 'results.json').write_text(json.dumps([result(attack, 1.0, t1=0.5, t2=0.5, delta=0.0)]))
    page = page_of_samples(tmp_path, [bad])
    tags = Checker(page).tags
    assert 'script' not in tags and 'img' in tags and '&lt;script&gt;alert(1)' in page
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]', page)
    assert '⟨U+001B⟩[31mred⟨U+0007⟩' in page and '⟨U+202E⟩' in page


def test_damaged_files_are_left_out_and_the_rest_is_shown(tmp_path):
    workdir = make_run(tmp_path)
    for name in ('attempts', 'scaling'):
        (workdir / f'{name}.json').write_text('[{"method": "ba')
    (workdir / 'results.json').write_text('[{"method": "ba')
    (workdir / 'base' / 'config.json').write_bytes(b'\xff\xfe{')
    with open(workdir / 'stage1' / 'metrics.jsonl', 'ab') as file:
        file.write(b'\xff\xfe\x00\n[1]\n"text"\n' + b'[' * 100_000 + b'\n{"step": 61, "t1": 1' + b'0' * 400 + b'}\n')
    with open(workdir / 'evaluation' / 'samples.jsonl', 'ab') as file:
        file.write(b'{"turns": 3}\n{"turns": [1, 2]}\n{"turns": [{}]}\n{"turns": [{}, {}], "problem": "\xff"}\n{"tu')
    page = report.write(workdir).read_text()
    assert 'there is no readable results.json' in page and '<h3>Accuracy by turn</h3>' in page
    assert '<summary>base</summary>' not in page and page.count('<summary>stage') == 2
    assert 'No evaluation yet' in page


def test_read_jsonl_leaves_out_a_half_written_line(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(b'{"a": 1}\n\n{"a": "\xff"}\nnonsense\n{"a": 3')
    assert jsonl.read_jsonl(path) == [{'a': 1}, {'a': '\ufffd'}]
    assert jsonl.read_jsonl(tmp_path / 'absent.jsonl') == []


def test_number_is_nan_for_what_is_no_number():
    row = dict(good=2, null=None, text='1', true=True, infinite=float('inf'), huge=10**400)
    assert jsonl.number(row, 'good') == 2.0
    assert all(np.isnan(jsonl.number(row, key)) for key in ('null', 'text', 'true', 'infinite', 'huge', 'absent'))


def test_a_run_that_has_only_its_base(tmp_path):
    lines(tmp_path / 'base' / 'metrics.jsonl', [dict(stage='base', step=1, loss=2.0)])
    page = report.write(tmp_path).read_text()
    assert '<h3>Supervised loss of the base</h3>' in page and 'Accuracy by turn' not in page
    assert 'No evaluation yet' in page and 'No transcripts yet' in page and 'No readable config.json' in page


def test_a_run_that_has_only_results(tmp_path):
    (tmp_path / 'results.json').write_text(json.dumps([dict(method='base', t1=0.5), dict(method='$x_', t2=None), 3]))
    page = report.write(tmp_path).read_text()
    assert '>50.0<' in page and 'No curves yet' in page


def test_workdir_without_anything_is_a_user_error(tmp_path):
    for stray in ('notes', 'base'):
        (tmp_path / stray).mkdir()
    with pytest.raises(UserError, match='launch/main.py'):
        report.write(tmp_path)
    assert not (tmp_path / 'report.html').exists() and not (tmp_path / 'report').exists()
    with pytest.raises(UserError, match='not a directory'):
        report.write(tmp_path / 'absent')


def test_workdir_that_cannot_be_written_to_is_a_user_error(tmp_path):
    lines(tmp_path / 'base' / 'metrics.jsonl', [dict(step=1, loss=2.0)])
    (tmp_path / 'report').write_text('a file where the folder of the charts goes')
    with pytest.raises(UserError, match='cannot write'):
        report.write(tmp_path)


# --- the command


def test_command_prints_the_path_or_the_one_sentence(tmp_path):
    command = [sys.executable, 'launch/report.py']
    lines(tmp_path / 'base' / 'metrics.jsonl', [dict(step=1, loss=2.0)])
    done = subprocess.run([*command, f'--workdir={tmp_path}'], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'report.html'}\n")
    failed = subprocess.run([*command, f"--workdir={tmp_path / 'absent'}"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stdout == ''
    assert 'is not a directory' in failed.stderr and 'Traceback' not in failed.stderr
