"""The server of `launch/watch.py`: follows files as they are, and gives out what is in them alone."""

import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from importlib import resources
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest

from score_jax import report
from score_jax.errors import UserError
from score_jax.watch import search, tail
from score_jax.watch.curves import POINTS, MetricsFile
from score_jax.watch.runs import Watcher, find_runs
from score_jax.watch.samples import LABELS_MAX, OTHER, Labels, SampleFile
from score_jax.watch.server import Server

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1 << 20


def turn(outcome: str, response: str = 'x', **extra) -> dict:
    return {'response': response, 'outcome': outcome, 'read': response, 'reward': float(outcome == 'correct')} | extra


def sample(first: str = 'wrong', second: str = 'correct', **extra) -> dict:
    return {'problem': 'Make 17.', 'instruction': 'Look again.', 'turns': [turn(first, 'a'), turn(second, 'b')]} | extra


def write(path: Path, rows: list, mode: str = 'w') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + '\n' for row in rows)
    return path


def followed(path: Path, stage: str = 'stage1') -> SampleFile:
    file = SampleFile(path, stage, Labels())
    while file.advance():
        pass
    return file


def served(workdirs: list[Path]) -> Server:
    """A server on a free port whose watcher has read everything; closed by the caller."""
    watcher = Watcher(workdirs)
    while watcher.advance():
        pass
    server = Server(watcher, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def ask(server: Server, address: str, host: str | None = None, method: str = 'GET') -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=30)
    connection.request(method, address, headers={'Host': host} if host is not None else {})
    response = connection.getresponse()
    out = response.status, dict(response.headers), response.read()
    connection.close()
    return out


def answer(server: Server, address: str):
    status, _, body = ask(server, f'/api/{address}')
    assert status == 200, body
    return json.loads(body, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))


def all_rows(server: Server) -> list[dict]:
    """Page after page, as the browser asks for them."""
    page = answer(server, 'samples')
    rows = page['rows']
    while page['next'] is not None:
        run, stage, row = page['next']
        page = answer(server, 'samples?' + urlencode({'run-from': run, 'stage-from': stage, 'row-from': row}))
        rows += page['rows']
    return rows


@pytest.fixture
def serve(request):
    def start(*workdirs: Path) -> Server:
        server = served(list(workdirs))
        request.addfinalizer(server.server_close)
        request.addfinalizer(server.shutdown)
        return server
    return start


# --- following a file


def test_lines_are_given_out_once_and_only_whole(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_bytes(b'one\ntwo\nthr')
    file = tail.Tail(path)
    assert file.read(LIMIT) == (False, 0, b'one\ntwo\n')
    assert file.read(LIMIT).lines == b''
    with path.open('ab') as more:
        more.write(b'ee\nfour\n')
    assert file.read(LIMIT) == (False, 8, b'three\nfour\n')
    assert file.read(LIMIT) == (False, 19, b'')


def test_small_limits_lose_nothing(tmp_path):
    path = tmp_path / 'x.jsonl'
    lines = [b'a' * length + b'\n' for length in (1, 50, 3, 0, 200, 7)]
    path.write_bytes(b''.join(lines))
    file, got = tail.Tail(path), b''
    while chunk := file.read(10).lines:
        got += chunk
    assert got == b''.join(lines)


@pytest.mark.parametrize('change', ['truncated', 'replaced', 'rewritten'])
def test_file_that_is_not_the_same_is_read_anew(tmp_path, change):
    path = tmp_path / 'x.jsonl'
    path.write_bytes(b'one\ntwo\nthree\n')
    file = tail.Tail(path)
    file.read(LIMIT)
    if change == 'truncated':
        os.truncate(path, 4)
    elif change == 'replaced':  # by a file that begins alike and is longer
        (tmp_path / 'new').write_bytes(b'one\ntwo\nthree\nfour\n')
        os.replace(tmp_path / 'new', path)
    else:  # in place, and longer than before
        path.write_bytes(b'one\nnot two\nand more\n')
    assert file.read(LIMIT) == (True, 0, path.read_bytes())


def test_file_may_come_later_and_go_again(tmp_path):
    file = tail.Tail(tmp_path / 'x.jsonl')
    assert file.read(LIMIT) == (False, 0, b'')
    file.path.write_bytes(b'one\n')
    assert file.read(LIMIT).lines == b'one\n'
    file.path.unlink()
    assert file.read(LIMIT) == (True, 0, b'')
    file.path.mkdir()
    assert file.read(LIMIT).lines == b''


def test_line_beyond_all_bounds_is_passed_over_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, 'LONGEST_LINE', 100)
    path = tmp_path / 'x.jsonl'
    path.write_bytes(b'one\n' + b'x' * 1000 + b'\ntwo\n')
    file, got = tail.Tail(path), []
    for _ in range(40):
        got.append(file.read(10).lines)
    assert b''.join(got) == b'one\ntwo\n' and file.too_long == 1
    assert max(map(len, got)) <= 100


# --- the index


def test_labels_say_how_a_sample_went(tmp_path):
    rows = [sample('wrong', 'correct'), sample('correct', 'truncated'),
            {'turns': [turn('wrong', 'a'), turn('wrong', 'other text', read='a')]},  # the verifier read the same
            {'turns': [turn('wrong', 'a', read=None), turn('wrong', 'b', read=None)]}, {'turns': [turn('correct')]},
            {'turns': [turn('wrong'), turn('wrong', 'b', truncated=True)]}, {'turns': 'none'}, {}]
    file = followed(write(tmp_path / 'samples.jsonl', rows))
    names = [set(file._labels.names(int(bits))) for bits in file.index.labels]
    assert names == [
        {'i->c', 'wrong', 'correct'}, {'c->i', 'correct', 'truncated'}, {'i->i', 'copied', 'wrong'}, {'i->i', 'wrong'},
        {'correct'}, {'i->i', 'wrong', 'truncated'}, set(), set()]


def test_outcomes_of_any_name_can_be_filtered_until_there_are_too_many(tmp_path):
    file = followed(write(tmp_path / 'samples.jsonl', [sample(f'odd{place}', 'wrong') for place in range(100)]))
    assert len(file._labels.bits) == LABELS_MAX
    assert 'odd0' in file._labels.names(int(file.index.labels[0]))
    assert OTHER in file._labels.names(int(file.index.labels[99]))


def test_index_is_small_and_does_not_hold_texts(tmp_path):
    file = followed(write(tmp_path / 'samples.jsonl', [sample(problem='x' * 5000)] * 1000))
    assert sum(column.itemsize for column in file.index) <= 24
    assert sum(column.base.nbytes for column in file.index) < 40 * 1000


def test_index_follows_a_run_that_was_resumed(tmp_path):
    path = write(tmp_path / 'samples.jsonl', [sample(step=step) for step in range(1, 9)])
    file = followed(path)
    write(tmp_path / 'new', [sample(step=step) for step in range(1, 5)] + [sample('correct', 'correct', step=5)])
    before = file.index
    os.replace(tmp_path / 'new', path)
    while file.advance():
        pass
    assert file.index.step.tolist() == [1, 2, 3, 4, 5] and before.step.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    fifth = json.loads(file.read(int(file.index.offset[4]), int(file.index.length[4])))
    assert fifth['turns'][0]['outcome'] == 'correct'


HOSTILE = {
    'script': b'{"problem": "<script>alert(1)</script><img src=x onerror=alert(1)>", "turns": []}',
    'escape': b'{"problem": "\\u001b[2J\\u001b]0;owned\\u0007 \\u202ereversed", "turns": []}',
    'invalid UTF-8': b'{"problem": "\xff\xfe\xc0 text", "turns": []}',
    'lone surrogate': b'{"problem": "\\ud800", "turns": []}',
    'not a number': b'{"problem": "p", "step": NaN, "turns": [{"outcome": "wrong", "reward": Infinity, '
                    b'"tokens": 1e999}]}',
    'other types': b'{"problem": {"a": [1]}, "step": "x", "method": ["m"], "turns": [1, {"outcome": [2], '
                   b'"response": 3, "read": {}}, null]}',
    '10 MB': b'{"problem": "p", "turns": [{"response": "' + b'y' * 10_000_000 + b'", "outcome": "wrong"}]}',
    'carriage return': b'{"problem":\r "p", "turns": []}',
}
UNREADABLE = (b'[1, 2]', b'{"problem": "torn', b'\x00\x00', b'[' * 100_000, b'7')


@pytest.mark.parametrize('line', HOSTILE.values(), ids=HOSTILE)
def test_hostile_line_changes_nothing_but_its_own_cell(tmp_path, serve, line):
    neighbours = [sample(step=1), sample('correct', 'wrong', step=3)]
    path = write(tmp_path / 'stage1' / 'samples.jsonl', neighbours[:1])
    with path.open('ab') as file:
        file.write(b'\n'.join(UNREADABLE) + b'\n' + line + b'\n' + json.dumps(neighbours[1]).encode() + b'\n{"half')
    server = serve(tmp_path)
    rows = all_rows(server)
    assert [row['place'][2] for row in rows] == [2, 1, 0]
    assert [rows[place]['kind'] for place in (0, 2)] == ['c->i', 'i->c']
    shown = [answer(server, f'sample?run={tmp_path.name}&stage=stage1&row={row}') for row in range(3)]
    for row, neighbour in ((0, neighbours[0]), (2, neighbours[1])):
        assert shown[row]['problem']['text'] == 'Make 17.' and shown[row]['step'] == neighbour['step']
        assert [turn['outcome'] for turn in shown[row]['turns']] == [turn['outcome'] for turn in neighbour['turns']]
    for value in (rows, shown):  # nothing in it can steer a terminal or turn the direction of writing, nothing is long
        assert not re.search('[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]', json.dumps(value, ensure_ascii=False))
        assert len(json.dumps(value)) < 200_000
    assert answer(server, 'runs')['runs'][0]['unreadable'] == len(UNREADABLE)
    _, headers, raw = ask(server, f'/api/raw?run={tmp_path.name}&stage=stage1&row=1')
    assert raw == line and headers['Content-Disposition'].startswith('attachment')
    assert headers['Content-Type'].startswith('text/plain')


def test_stages_are_replaced_at_once_so_that_others_may_be_reading_them(tmp_path):
    write(tmp_path / 'run' / 'stage1' / 'metrics.jsonl', [{'step': 1}])
    watcher = Watcher([tmp_path])
    before = watcher.runs['run'].stages
    write(tmp_path / 'run' / 'stage2' / 'metrics.jsonl', [{'step': 1}])
    watcher.look()
    assert list(before) == ['stage1'] and list(watcher.runs['run'].stages) == ['stage1', 'stage2']
    assert watcher.runs['run'].stages['stage1'] is before['stage1']


def test_an_answer_that_fails_is_told_as_json_and_the_next_one_works(tmp_path, serve, monkeypatch, capsys):
    write(tmp_path / 'stage1' / 'samples.jsonl', [sample()])
    server = serve(tmp_path)

    def fail():
        raise RuntimeError('out of order')

    monkeypatch.setattr(server.watcher, 'progress', fail)
    status, _, body = ask(server, '/api/runs')
    assert status == 500 and 'out of order' in json.loads(body)['error']
    assert 'RuntimeError' in capsys.readouterr().err
    assert answer(server, 'counts')['total'] == 1


def test_download_that_ends_early_closes_the_connection(tmp_path, serve):
    path = write(tmp_path / 'stage1' / 'samples.jsonl', [sample(problem='x' * 2_000_000)])
    server = serve(tmp_path)
    os.truncate(path, 1000)
    with pytest.raises(http.client.IncompleteRead):
        ask(server, f'/api/raw?run={tmp_path.name}&stage=stage1&row=0')


# --- pages, counts, search


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    """(files in the order of a page, {(run, stage): samples}), of several runs, stages and kinds."""
    source, folder, samples = random.Random(0), tmp_path_factory.mktemp('many'), {}
    words = ['apple', 'Äpfel', 'say "no"', 'two\nlines', 'a\\b', 'ΣΑΣ', '<b>', 'naïve']
    for run in ('r0', 'r1', 'r2'):
        for stage in ('stage1', 'stage2', 'evaluation'):
            rows = []
            for place in range(150):
                first, second = (turn(source.choice(('correct', 'wrong', 'truncated')), source.choice(words))
                                 for _ in range(2))
                where = {'step': place // 3}
                if stage == 'evaluation':
                    where = {'method': source.choice('ab'), 'temperature': 0.0}
                rows.append(where | {'problem': f'{source.choice(words)} {place}', 'turns': [first, second]})
            path = folder / run / stage / 'samples.jsonl'
            path.parent.mkdir(parents=True)
            path.write_text(''.join(
                json.dumps(row, ensure_ascii=place % 2 == 0) + '\n' for place, row in enumerate(rows)))
            samples[run, stage] = rows
    watcher = Watcher([folder])
    while watcher.advance():
        pass
    files = [file for run in watcher.runs.values() for file in run.files()]
    return files, samples, watcher.labels.bits


def expected(files, samples, wanted: search.Filter) -> list[tuple]:
    """Places that pass, by the plainest means."""
    out = []
    for run, stage, _ in files:
        rows = list(enumerate(samples[run, stage]))
        for place, row in rows if stage == 'evaluation' else reversed(rows):
            first, second = row['turns']
            before, after = ('c' if turn['outcome'] == 'correct' else 'i' for turn in row['turns'])
            names = {f'{before}->{after}', first['outcome'], second['outcome']}
            names |= {'copied'} if first['read'] == second['read'] else set()
            origin = f"evaluation · {row['method']} · greedy" if 'method' in row else stage
            texts = [row['problem'], first['response'], second['response']]
            if (set(wanted.labels) <= names and wanted.source in ('', origin)
                    and (wanted.upto is None or row.get('step', -1) <= wanted.upto)
                    and any(wanted.text.lower() in text.lower() for text in texts)):
                out.append((run, stage, place))
    return out


def pages(files, wanted, bits, limit: int) -> list[tuple]:
    out, start = [], None
    while True:
        page = search.page(files, wanted, bits, start, limit)
        assert len(page['rows']) <= limit
        out += [tuple(row['place']) for row in page['rows']]
        if page['next'] is None:
            return out
        assert page['next'] != start
        start = page['next']


FILTERS = [
    search.Filter(), search.Filter(labels=('i->c',)), search.Filter(labels=('copied', 'i->i', 'truncated')),
    search.Filter(source='stage1', upto=20), search.Filter(source='evaluation · a · greedy'),
    search.Filter(labels=('no such label',)), search.Filter(source='no such stage'), search.Filter(upto=0),
    *(search.Filter(text=text)
      for text in ('APPLE', 'Äpfel', '"no"', 'two\nlines', 'a\\b', 'ΣΑΣ', '<B>', 'zebra', '149')),
    search.Filter(text='naïve', labels=('c->i',), source='stage2'), search.Filter(text='response')]


@pytest.mark.parametrize('wanted', FILTERS, ids=str)
@pytest.mark.parametrize('limit', [7, 1000])
def test_pages_are_what_passes_in_order_and_complete(many, wanted, limit, monkeypatch):
    monkeypatch.setattr(search, 'SLICE_ROWS', 40)
    files, samples, bits = many
    assert pages(files, wanted, bits, limit) == expected(files, samples, wanted)


def test_search_that_runs_out_of_time_goes_on_where_it_stopped(many, monkeypatch):
    monkeypatch.setattr(search, 'SECONDS', 0.0)
    monkeypatch.setattr(search, 'SLICE_ROWS', 10)
    files, samples, bits = many
    first = search.page(files, search.Filter(text='zebra'), bits, None, 50)
    assert first['rows'] == [] and first['next'] is not None and first['scanned'] == 10
    last_of_a_file = search.Place('r0', 'stage2', 5)
    assert search.page(files, search.Filter(text='zebra'), bits, last_of_a_file, 50)['next'] == ('r0', 'stage1', 149)
    assert pages(files, search.Filter(text='apple'), bits, 50) == expected(files, samples, search.Filter(text='apple'))


def test_page_ends_when_its_lines_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(search, 'PAGE_BYTES', 10_000)
    file = followed(write(tmp_path / 'samples.jsonl', [sample(problem='x' * 4000, step=step) for step in range(9)]))
    files, bits = [('r', 'stage1', file)], Labels().bits
    assert len(search.page(files, search.Filter(), bits, None, 50)['rows']) == 2
    assert len(pages(files, search.Filter(), bits, 50)) == 9


def test_counts_are_of_what_would_be_listed(many):
    files, samples, bits = many
    wanted = search.Filter(labels=('i->c', 'truncated'), source='stage2')
    counts = search.count(files, wanted, bits)
    assert counts['total'] == len(expected(files, samples, wanted)) > 0
    for name in ('copied', 'wrong'):
        assert counts['labels'][name] == len(expected(files, samples, wanted._replace(labels=(*wanted.labels, name))))
    for kind in ('c->i', 'i->i', 'i->c'):  # a sample has one kind: counted as if that one were asked for instead
        assert counts['labels'][kind] == len(expected(files, samples, wanted._replace(labels=('truncated', kind))))
    for source in ('stage1', 'stage2', 'evaluation · b · greedy'):
        assert counts['sources'][source] == len(expected(files, samples, wanted._replace(source=source)))


def test_lines_that_are_appended_do_not_shift_the_pages_of_a_training_run(tmp_path):
    path = write(tmp_path / 'samples.jsonl', [sample(step=step) for step in range(100)])
    file = followed(path)
    files, bits = [('r', 'stage1', file)], Labels().bits
    first = search.page(files, search.Filter(), bits, None, 30)
    write(path, [sample(step=step) for step in range(100, 200)], 'a')
    file.advance()
    second = search.page(files, search.Filter(), bits, first['next'], 30)
    assert [row['step'] for row in first['rows'] + second['rows']] == list(range(99, 39, -1))


def test_long_text_is_cut_in_the_middle():
    cut = search.text('a' * 15_000 + 'b' * 15_000)
    assert cut['left_out'] == 10_000 and cut['text'].startswith('aaa') and cut['text'].endswith('bbb')
    assert '10,000 characters left out' in cut['text'] and len(cut['text']) < 20_100


# --- curves


def metrics(steps, **values) -> list[dict]:
    return [{'step': step, 'steps': 100, 't1': step / 100, **values} for step in steps]


def test_curves_are_those_of_the_report_also_after_a_resume_that_logged_steps_again(tmp_path):
    rows = metrics(range(1, 60)) + metrics(range(40, 80), t2=0.5) + metrics([70], t1=None, t2=float('nan'))
    path = write(tmp_path / 'metrics.jsonl', rows)
    with path.open('a') as file:
        file.write('not JSON\n{"step": "x"}\n{"step": 81, "t1": 0.')
    file = MetricsFile(path)
    while file.advance(500):
        pass
    columns = file.columns()
    wanted = {key: values for key, values in report.read_curves(path).items() if key != 'steps'}
    assert columns.keys() == wanted.keys()
    for key, values in wanted.items():
        np.testing.assert_allclose(columns[key], values, rtol=1e-6)
    assert file.summary['step'] == 79 and file.summary['steps'] == 100
    version = file.version
    assert not file.advance() and file.version == version


def test_thinned_curves_are_means_of_neighbours(tmp_path):
    file = MetricsFile(write(tmp_path / 'metrics.jsonl', [
        {'step': step, 'steps': 4000, 't1': step, 'rare': 1.0 if step == 7 else None} for step in range(1, 4001)]))
    while file.advance():
        pass
    thinned = file.thinned()
    assert len(thinned['step']) == POINTS and thinned['step'][:2] == [10, 20]
    assert thinned['t1'][:2] == [5.5, 15.5]
    assert thinned['rare'][:3] == [1.0, None, None]


def test_curves_of_a_file_that_was_cut_start_over(tmp_path):
    path = write(tmp_path / 'metrics.jsonl', metrics(range(1, 50)))
    file = MetricsFile(path)
    file.advance()
    write(tmp_path / 'new', metrics(range(1, 11)))
    os.replace(tmp_path / 'new', path)
    file.advance()
    assert file.columns()['step'].tolist() == list(range(1, 11)) and file.version == 2


# --- runs


def test_runs_are_found_below_folders_and_by_themselves(tmp_path):
    for name in ('a/x', 'a/y', 'b', 'deep/1/2'):
        write(tmp_path / name / 'stage1' / 'samples.jsonl', [sample()])
    (tmp_path / 'empty' / 'stage1').mkdir(parents=True)
    (tmp_path / '.hidden' / 'stage1').mkdir(parents=True)
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == ['a/x', 'a/y', 'b', 'deep/1/2']
    assert list(Watcher([tmp_path]).runs) == ['a/x', 'a/y', 'b', 'deep/1/2']
    assert list(Watcher([tmp_path / 'b']).runs) == ['b']
    assert list(Watcher([tmp_path / 'a', tmp_path / 'b', tmp_path / 'a' / 'x']).runs) == ['a/x', 'a/y', 'b']
    write(tmp_path / 'deep' / 'exported' / 'config.json', [{}])  # a model: neither a run nor in the way of one
    (tmp_path / 'a' / 'results.json').write_text('[]')  # makes a run of it, beside those in it
    write(tmp_path / 'b' / 'evaluation' / 'old' / 'samples.jsonl', [sample()])
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == ['a', 'a/x', 'a/y', 'b', 'deep/1/2']


def test_runs_of_the_same_name_are_kept_apart(tmp_path):
    for parent in ('one', 'two'):
        write(tmp_path / parent / 'run' / 'stage1' / 'samples.jsonl', [sample(step=len(parent))])
    assert list(Watcher([tmp_path / 'one' / 'run', tmp_path / 'two' / 'run']).runs) == ['run', 'run (2)']


def test_runs_and_stages_that_come_later_are_taken_up(tmp_path, serve):
    write(tmp_path / 'a' / 'stage1' / 'samples.jsonl', [sample()])
    server = serve(tmp_path)
    watcher = server.watcher
    write(tmp_path / 'a' / 'stage2' / 'metrics.jsonl', metrics([1, 2]))
    write(tmp_path / 'b' / 'evaluation' / 'samples.jsonl', [sample(method='base', temperature=1.0)])
    (tmp_path / 'b' / 'results.json').write_text('[]')
    watcher.look()
    while watcher.advance():
        pass
    rows = {run['name']: [stage['name'] for stage in run['stages']] for run in answer(server, 'runs')['runs']}
    assert rows == {'a': ['stage1', 'stage2'], 'b': ['evaluation']}
    assert answer(server, 'counts')['sources'] == {'stage1': 1, 'evaluation · base · temperature 1': 1}


def test_names_of_files_are_made_visible_and_still_found(tmp_path, serve):
    write(tmp_path / 'r\x1b[2J' / 'st\nage' / 'samples.jsonl', [sample()])
    server = serve(tmp_path)
    [row] = answer(server, 'samples')['rows']
    assert row['place'] == ['r⟨U+001B⟩[2J', 'st\nage', 0]
    assert answer(server, 'sample?run=r%E2%9F%A8U%2B001B%E2%9F%A9%5B2J&stage=st%0Aage&row=0')['labels']


def test_details_hold_numbers_and_visible_text_alone(tmp_path, serve):
    base = {'method': 'base\x1b', 'seed': 0}
    rows = [base | {'temperature': 0.0, 'n': 10, 't1': 0.5, 't1_low': float('nan'), 'extra': '<b>'},
            base | {'temperature': 1.0, 't1': 'x'}, 'not a row']
    (tmp_path / 'results.json').write_text(json.dumps(rows))
    write(tmp_path / 'stage1' / 'metrics.jsonl', metrics([1]))
    (tmp_path / 'stage1' / 'config.json').write_text('{"a": {"b": 1, "c": "\\u202e"}, "d": [1, 2]}')
    details = answer(serve(tmp_path), f'details?run={tmp_path.name}')
    assert [(row['label'], row['decoding'], row['t1'], row['t1_low']) for row in details['results']] == [
        ('base⟨U+001B⟩', 'greedy', 0.5, None), ('base⟨U+001B⟩', 'temperature 1', None, None)]
    assert 'extra' not in details['results'][0]
    assert details['configs'] == {'stage1': {'a.b': '1', 'a.c': '"⟨U+202E⟩"', 'd': '[1, 2]'}}


# --- what the server gives out, and to whom


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    write(folder / 'demo' / 'stage1' / 'samples.jsonl', [sample(step=step) for step in range(5)])
    write(folder / 'demo' / 'stage1' / 'metrics.jsonl', metrics(range(1, 6)))
    (folder / 'secret.txt').write_text('secret')
    server = served([folder])
    yield server
    server.shutdown()
    server.server_close()


def test_page_and_its_parts_are_served_with_a_strict_policy(small):
    page = ask(small, '/')[2].decode()
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert '/app.js' in parts and '/watch.css' in parts and all(part.startswith('/') for part in parts)
    for address in ('/', *parts, '/api/runs', '/nothing'):
        status, headers, _ = ask(small, address)
        assert status == (404 if address == '/nothing' else 200)
        policy = dict(part.strip().split(' ', 1) for part in headers['Content-Security-Policy'].split(';'))
        assert policy['default-src'] == "'none'" and policy['script-src'] == policy['style-src'] == "'self'"
        assert policy['base-uri'] == policy['form-action'] == policy['frame-ancestors'] == "'none'"
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert 'Access-Control-Allow-Origin' not in headers


def test_page_has_no_way_to_make_markup_of_text():
    folder = resources.files('score_jax.watch').joinpath('page')
    for file in folder.iterdir():
        text = file.read_text()
        assert not re.search(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|'
                             r'srcdoc|createContextualFragment|setHTML|javascript:', text), file.name
        assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)|url\(|@import', text), file.name
        inline = r'<script(?! type="module" src="/app.js"></script>)| on\w+=| style='
        assert file.name.endswith('.js') or not re.search(inline, text), file.name


@pytest.mark.parametrize('host', ['evil.example', 'evil.example:80', '127.0.0.1.evil.example', '', '[', '192.168.0.1',
                                  'localhost.', 'x@127.0.0.1@evil.example'])
def test_other_hosts_are_refused(small, host):
    for address in ('/', '/app.js', '/api/runs'):
        status, _, body = ask(small, address, host=host)
        assert status == 403 and b'demo' not in body


@pytest.mark.parametrize('host', ['127.0.0.1', '127.0.0.1:9999', 'localhost:8321', 'LOCALHOST'])
def test_this_machine_is_served_also_through_a_tunnel_with_another_port(small, host):
    assert ask(small, '/api/runs', host=host)[0] == 200


@pytest.mark.parametrize('address', [
    '/../secret.txt', '/%2e%2e/secret.txt', '/..%2fsecret.txt', '//etc/passwd', '/etc/passwd', '/page/app.js',
    '/api/raw?run=..&stage=..&row=0', '/api/raw?run=demo&stage=../..&row=0',
    '/api/raw?run=demo/..&stage=secret.txt&row=0',
    '/api/raw?run=demo&stage=stage1&row=99', '/api/raw?run=demo&stage=stage1&row=-1', '/api/sample?run=demo',
    '/api/details?run=../runs', '/api/curves?run=demo&stage=..', '/api/samples?run=..', '/api/samples?upto=x',
    '/api/samples?limit=1e9', '/api/samples?limit=٣', '/api/samples?text=' + 'x' * 2000, '/api/', '/api/runs/..',
    '/http://x'])
def test_nothing_but_the_page_and_the_samples_can_be_reached(small, address):
    status, _, body = ask(small, address.replace('٣', '%D9%A3'))
    assert status in (400, 404) and b'secret' not in body and b'root:' not in body and b'Traceback' not in body


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH'])
def test_only_reading_is_possible(small, method):
    assert ask(small, '/api/runs', method=method)[0] == 501


def test_garbage_on_the_wire_ends_that_connection_alone(small, capsys):
    end = b'\r\n\r\n'
    for garbage in (b'\x00\xff' * 50 + end, b'GET / HTTP/9.9' + end, b'GET ' + b'a' * 100_000 + end, b'GET'):
        with socket.create_connection(('127.0.0.1', small.server_port), timeout=10) as connection:
            connection.sendall(garbage)
    assert ask(small, '/api/runs')[0] == 200
    assert 'Traceback' not in capsys.readouterr().err


def test_page_past_the_end_of_a_file_that_shrank_is_empty(small):
    assert answer(small, 'samples?run-from=demo&stage-from=gone&row-from=3')['rows'] == []
    assert len(answer(small, 'samples?run-from=demo&stage-from=stage1&row-from=99')['rows']) == 5


# --- the command


def launch(*flags: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, 'launch/watch.py', *flags], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_command_prints_its_address_and_serves(tmp_path):
    write(tmp_path / 'stage1' / 'samples.jsonl', [sample()])
    process = launch(f'--workdir={tmp_path}', '--port=0')
    try:
        line = process.stdout.readline()
        port = int(re.fullmatch(r'http://127\.0\.0\.1:(\d+)/  \(1 run; Ctrl-C ends it\)\n', line)[1])
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
        connection.request('GET', '/api/runs')
        assert json.load(connection.getresponse())['runs'][0]['name'] == tmp_path.name
    finally:
        process.terminate()
        process.communicate()


def test_command_says_what_is_wrong_in_one_sentence(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        cases = {f'--workdir={tmp_path}/nowhere': 'workdir: ', f'--workdir={__file__}': 'workdir: ',
                 f'--port={port}': f'port: {port} is taken; name another, or --port=0'}
        processes = {flag: launch(f'--workdir={tmp_path}', flag) for flag in cases}
        for flag, sentence in cases.items():
            out, error = processes[flag].communicate()
            assert processes[flag].returncode == 2 and out == ''
            assert error.startswith(sentence) and error.count('\n') == 1


def test_unknown_workdir_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match='is not a directory; name one that launch/main.py wrote'):
        Watcher([tmp_path / 'nowhere'])


def test_watching_needs_no_jax():
    code = 'import sys; from score_jax.watch import server; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
