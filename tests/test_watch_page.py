"""The page of `launch/watch.py` in a real browser: shows, filters, compares, follows; text stays text."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from chromium import BINARY, Browser

from score_jax.watch import search
from score_jax.watch.runs import Watcher
from score_jax.watch.server import Server

# SCORE_JAX_BROWSER says that there must be one: without it the tests then fail.
pytestmark = pytest.mark.skipif(
    BINARY is None and not os.environ.get('SCORE_JAX_BROWSER'),
    reason='no Chromium or Chrome on PATH to try the page in')

EVIL = '<script>window.owned = 1</script><img src=x onerror="window.owned = 1"><svg onload="window.owned = 1">'
WIDE, NARROW = (1400, 900), (390, 800)


def turn(outcome: str, response: str, **extra) -> dict:
    return {'response': response, 'outcome': outcome, 'read': response[-3:], 'reward': float(outcome == 'correct'),
            'tokens': 7, 'truncated': outcome == 'truncated'} | extra


def samples(count: int) -> list[dict]:
    """Step by step: wrong -> correct, correct -> wrong, copied wrong, correct -> truncated."""
    pairs = [(turn('wrong', '3 * 5 = 16 + 2 = 18'), turn('correct', '3 * 5 = 15 + 2 = 17')),
             (turn('correct', '9 + 8 = 17'), turn('wrong', '9 + 8 = 18')),
             (turn('wrong', 'so it is 18'), turn('wrong', 'so it is 18')),
             (turn('correct', '20 - 3 = 17'), turn('truncated', '20 - 3 = 1'))]
    return [{'step': step, 'problem': f'Make {step} of 3 and 5.', 'instruction': 'Look again.',
             'turns': list(pairs[step % 4])} for step in range(1, count + 1)]


def metrics(first: int, last: int, level: float = 0.2) -> list[dict]:
    return [{'step': step, 'steps': 120, 't1': level, 't2': level + step / 400, 'delta': step / 400, 'changed': 0.5,
             'i_to_c': 0.2, 'c_to_i': 0.1, 'kl_turn1': 0.1, 'kl_turn2': 1.0, 'grad_norm': 0.02,
             'zero': 0.0, 'tiny': 1e-7}
            for step in range(first, last + 1)]


def write(path: Path, rows: list[dict], mode: str = 'w') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + '\n' for row in rows)


def make_run(workdir: Path, level: float) -> None:
    for stage in ('stage1', 'stage2'):
        write(workdir / stage / 'metrics.jsonl', metrics(1, 120, level))
        write(workdir / stage / 'samples.jsonl', samples(120))
        (workdir / stage / 'config.json').write_text(json.dumps({'steps': 120, 'objective': {'alpha': level}}))
    row = {'method': 'stage2', 'seed': 0, 'temperature': 0.0, 'n': 200}
    for key, value in dict(t1=level, t2=0.6, delta=0.6 - level, i_to_c=0.5, c_to_i=0.1, changed=0.7).items():
        row |= {key: value, f'{key}_low': value - 0.05, f'{key}_high': value + 0.05}
    (workdir / 'results.json').write_text(json.dumps([row | {'method': 'base', 'delta': -0.1}, row]))


class Page:
    """The browser at one server's page."""

    def __init__(self, browser: Browser, url: str):
        self.browser, self.url = browser, url
        self.js, self.until, self.key = browser.js, browser.until, browser.key

    def open(self, view: str, size=WIDE, scheme: str = 'light', **state) -> None:
        self.browser.window(*size, scheme)
        self.browser.open(f'{self.url}#{urlencode({"view": view} | state, doseq=True)}')
        self.until('document.querySelector("main")?.children.length > 0')

    def text(self) -> str:
        return self.js('document.body.innerText')

    def click(self, selector: str) -> None:
        self.until(f'document.querySelector({json.dumps(selector)})')
        self.js(f'document.querySelector({json.dumps(selector)}).click()')

    def state(self) -> dict:
        return self.js('Object.fromEntries([...new Set(new URLSearchParams(location.hash.slice(1)).keys())].map('
                       'key => [key, new URLSearchParams(location.hash.slice(1)).getAll(key).join("+")]))')

    def list(self) -> list[str]:
        """What the marks in the list of transcripts say, row by row."""
        return self.js('[...document.querySelectorAll(".sample .way")].map(mark => mark.title)')


def serve(folders: list[Path], request) -> Server:
    watcher = Watcher(folders)
    while watcher.advance():
        pass
    server = Server(watcher, 0)
    for target in (server.serve_forever, watcher.follow):
        threading.Thread(target=target, daemon=True).start()
    for end in (server.server_close, server.shutdown, watcher.close):
        request.addfinalizer(end)
    return server


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp('profile'))
    yield browser
    browser.close()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    for name, level in (('first', 0.3), ('second', 0.4), ('third', 0.5)):
        make_run(folder / name, level)
    return folder


@pytest.fixture(scope='module')
def page(browser, folder, request):
    return Page(browser, serve([folder], request).url)


SHOWN = {
    'runs': ('first', 'second', '120 / 120', '+28.6'), 'curves': ('Accuracy by turn', 'stage1', 'stage2'),
    'transcripts': ('240 transcripts', 'Make 120 of 3 and 5.', 'Turn 1', 'Turn 2', 'Look again.'),
    'results': ('Greedy', 'n = 200', '60.0', '+30.0'), 'config': ('objective.alpha', '0.3')}


@pytest.mark.parametrize('size, scheme', [(WIDE, 'light'), (WIDE, 'dark'), (NARROW, 'light')])
@pytest.mark.parametrize('view', SHOWN)
def test_every_view_loads_without_a_complaint_and_fits_the_screen(page, view, size, scheme):
    page.open(view, size, scheme, run='first')
    for part in SHOWN[view]:
        if size == WIDE or view != 'transcripts' or 'Make' in part:
            page.until(f'document.body.innerText.toLowerCase().includes({json.dumps(part.lower())})')
    assert page.browser.complaints() == []
    assert page.js('document.documentElement.scrollWidth <= innerWidth')
    dark = page.js('getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(value => Number(value) < 60)')
    assert dark == (scheme == 'dark')


def test_chips_filter_and_the_address_keeps_them(page):
    page.open('transcripts', run='first')
    page.click('[data-label="i->c"]')
    page.until('document.querySelector("[data-label=\\"i->c\\"]")?.getAttribute("aria-pressed") === "true"')
    page.until('document.body.innerText.includes("60 transcripts")')
    page.until('document.querySelectorAll(".sample").length >= 50')
    assert set(page.list()) == {'i->c'} and page.state()['label'] == 'i->c'
    page.click('[data-label="c->i"]')  # a sample has one kind: this one instead
    page.until('document.querySelector(".sample .way")?.title === "c->i"')
    assert page.state()['label'] == 'c->i'
    page.click('[data-label="truncated"]')  # and, of those, only these
    page.until('document.body.innerText.includes("60 transcripts")')
    assert page.state()['label'] == 'c->i+truncated'
    page.js('history.back()')
    page.until('document.body.innerText.includes("120 transcripts")')
    assert page.state()['label'] == 'c->i'
    page.open('transcripts', run='first', label=['i->i', 'copied'], source='stage1')  # as a link that was sent
    page.until('document.body.innerText.includes("30 transcripts")')
    assert set(page.list()) == {'i->i'}
    assert page.js('document.querySelector("select").value') == 'stage1'


def test_list_grows_to_its_end_as_it_is_scrolled(page):
    page.open('transcripts', run='first')
    page.until('document.querySelectorAll(".sample").length >= 50')
    page.until('(document.querySelector(".side").scrollTop = 1e6) && '
               'document.querySelectorAll(".sample").length === 240')
    assert page.js('new Set([...document.querySelectorAll(".sample")].map(row => row.href)).size') == 240


def test_link_to_a_sample_shows_it_with_what_changed_marked(page):
    page.open('transcripts', run='first', **{'in': 'first', 'stage': 'stage2', 'row': 3})  # step 4: wrong, then correct
    page.until('document.querySelector(".turn2 mark")')
    marked = page.js('["del", "mark"].map(tag => '
                     '[...document.querySelectorAll(`.turn ${tag}`)].map(part => part.innerText))')
    assert marked == [['16', '18'], ['15', '17']]
    assert page.js('document.querySelector(".turn2 pre").innerText') == '3 * 5 = 15 + 2 = 17'
    assert 'against turn 1: 2 tokens new, 2 gone' in page.text()
    page.open('transcripts', run='first', **{'in': 'first', 'stage': 'stage2', 'row': 1})
    page.until('document.body.innerText.includes("the same text as turn 1")')
    assert page.js('document.querySelectorAll(".turn mark, .turn del").length') == 0


def test_marks_are_a_shortest_difference(page):
    page.open('runs')
    assert page.js('''(async () => {
      const { compare } = await import('/diff.js');
      let seed = 1;
      const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
      const words = (text) => text.split(/\\s+/).filter(Boolean);
      const common = (a, b) => {
        let row = new Array(b.length + 1).fill(0);
        const cell = (x, y, j, next) => x === y ? row[j] + 1 : Math.max(row[j + 1], next[j]);
        for (const x of a) row = b.reduce((next, y, j) => [...next, cell(x, y, j, next)], [0]);
        return row.at(-1);
      };
      for (let round = 0; round < 500; round++) {
        const word = () => 'abc'[random(3)] + [' ', '\\n', '  '][random(3)];
        const text = () => Array.from({ length: random(12) }, word).join('');
        const [a, b] = [text(), text()];
        const { before, after, gone, fresh } = compare(a, b);
        const whole = (parts) => parts.map((part) => part.text).join('');
        if (whole(before) !== a || whole(after) !== b) return `lost ${a}|${b}`;
        const same = common(words(a), words(b));
        if (words(a).length - gone !== same || words(b).length - fresh !== same) return `not shortest: ${a}|${b}`;
      }
      const long = (salt) => Array.from({ length: 9000 }, (_, place) => `${(place * salt) % 7919}`).join(' ');
      const { fresh } = compare(long(3), long(5));
      return fresh > 0 ? 'ok' : 'long texts';
    })()''') == 'ok'


def test_keys_do_everything(page):
    page.open('runs')
    page.key('3')
    page.until('document.querySelector(".sample[aria-current=true]")')
    current = '[...document.querySelectorAll(".sample")].findIndex(row => row.getAttribute("aria-current") === "true")'
    for key, place in (('j', 1), ('j', 2), ('ArrowDown', 3), ('k', 2), ('ArrowUp', 1)):
        page.key(key)
        page.until(f'{current} === {place}')
    page.until('document.querySelector(".turn")')
    page.key('/')
    assert page.js('document.activeElement.id') == 'search'
    for letter in 'Make 77':
        page.key(letter)
    page.until('document.querySelectorAll(".sample").length > 0 && '
               '[...document.querySelectorAll(".sample b")].every(row => row.innerText.startsWith("Make 77 "))')
    assert page.state()['text'] == 'Make 77'
    page.key('Escape')
    assert page.js('document.activeElement.id') != 'search'
    page.key('Escape')
    assert 'row' not in page.state()
    before = page.js('document.querySelector("#selection").innerText')
    page.key(']')
    page.until(f'document.querySelector("#selection").innerText !== {json.dumps(before)}')
    page.key('[')
    page.until(f'document.querySelector("#selection").innerText === {json.dumps(before)}')
    page.key('?')
    page.until('document.querySelector("dialog").open')
    page.key('Escape')
    page.js('document.querySelector("dialog").close()')
    page.key('2')
    page.until('document.querySelector("figure svg")')


def test_runs_are_compared_side_by_side(page):
    page.open('runs')
    for name in ('first', 'third'):
        page.click(f'[aria-label="Compare {name}"]')
        page.until(f'new URLSearchParams(location.hash.slice(1)).getAll("run").includes({json.dumps(name)})')
    page.click('#selection .add')
    page.until('document.querySelectorAll("[data-chart=\\"Gain of the last attempt\\"] path.line").length >= 4')
    colours = page.js('[...new Set([...document.querySelectorAll("[data-chart^=Gain] g[style]")].map('
                      'line => getComputedStyle(line).color))]')
    assert len(colours) == 2  # a colour for each run, in both stages
    page.key('4')
    page.until('document.querySelectorAll("table.results tbody tr").length === 4')
    page.key('5')
    page.until('document.querySelectorAll("tr.differs").length === 2')
    keys = page.js('[...document.querySelectorAll("tr.differs th")].map(cell => cell.innerText)')
    assert keys == ['objective.alpha'] * 2
    page.key('3')
    page.until('document.body.innerText.includes("480 transcripts")')
    page.click('[aria-label="Leave out third"]')
    page.until('document.body.innerText.includes("240 transcripts")')


def test_pointing_into_a_curve_tells_the_values_and_a_click_leads_to_the_transcripts(page):
    page.open('curves', run='first')
    page.until('document.querySelector("[data-chart=\\"Accuracy by turn\\"] .area")')
    page.js('''(() => {
      const area = document.querySelector('[data-chart="Accuracy by turn"] .area');
      const { left, width, top } = area.getBoundingClientRect();
      for (const kind of ['pointermove', 'click'])
        area.dispatchEvent(new PointerEvent(kind, { bubbles: true, clientX: left + width / 2, clientY: top + 5 }));
    })()''')
    page.until('document.body.dataset.view === "transcripts" && document.querySelector(".sample")')
    assert page.state()['source'] == 'stage1' and page.state()['upto'] == '60'
    page.until('document.querySelector(".sample .where").innerText === "step 60"')


def test_everything_else_that_is_logged_is_drawn_also_what_never_changes(page):
    page.open('curves', run='first', more='1')
    for key in ('grad_norm', 'zero', 'tiny'):
        page.until(f'document.querySelector("[data-chart={key}] .drawing path.line")')
    assert page.browser.complaints() == []


def test_narrow_screen_shows_the_list_or_the_sample(page):
    page.open('transcripts', NARROW, run='first')
    page.click('.sample')
    page.until('document.querySelector(".turn")?.offsetParent')
    assert page.js('document.querySelector(".samples").offsetParent === null')
    assert page.js('document.documentElement.scrollWidth <= innerWidth')
    page.click('.back')
    page.until('document.querySelector(".samples").offsetParent !== null')
    assert page.js('document.querySelector(".detail").offsetParent === null')


def test_running_stage_is_followed_without_a_reload(browser, tmp_path, request):
    write(tmp_path / 'stage1' / 'metrics.jsonl', metrics(1, 20))
    write(tmp_path / 'stage1' / 'samples.jsonl', samples(4))
    page = Page(browser, serve([tmp_path], request).url)
    page.open('runs')
    page.until('document.body.innerText.includes("20 / 120") && document.querySelector(".live")')
    page.js('window.sameDocument = true')
    write(tmp_path / 'stage1' / 'metrics.jsonl', metrics(21, 30), 'a')
    page.until('document.body.innerText.includes("30 / 120")')
    page.key('2')
    page.until('document.querySelector(".drawing path.line")')
    line = page.js('document.querySelector(".drawing path.line").getAttribute("d")')
    write(tmp_path / 'stage1' / 'metrics.jsonl', metrics(31, 60), 'a')
    page.until(f'document.querySelector(".drawing path.line").getAttribute("d") !== {json.dumps(line)}')
    page.key('3')
    page.until('document.body.innerText.includes("4 transcripts")')
    write(tmp_path / 'stage1' / 'samples.jsonl', samples(9)[4:], 'a')
    page.until('document.body.innerText.includes("9 transcripts")')
    assert page.js('window.sameDocument') and browser.complaints() == []


def test_a_run_that_nobody_chose_stays_while_another_is_written(browser, tmp_path, request):
    for name in ('one', 'two'):
        write(tmp_path / name / 'stage1' / 'samples.jsonl', samples(4))
        write(tmp_path / name / 'stage1' / 'metrics.jsonl', metrics(1, 20))
    os.utime(tmp_path / 'two' / 'stage1' / 'metrics.jsonl', (1, 1))
    page = Page(browser, serve([tmp_path], request).url)
    page.open('transcripts')
    page.until('document.querySelector(".picked")?.innerText.includes("two") || '
               'document.querySelector(".picked")?.innerText.includes("one")')
    looked_at = page.js('document.querySelector(".picked").innerText.trim()')
    other = {'one': 'two', 'two': 'one'}[looked_at]
    write(tmp_path / other / 'stage1' / 'samples.jsonl', samples(9)[4:], 'a')
    page.until('fetch("/api/runs").then(answer => answer.json()).then(({ runs }) => '
               'runs.some(run => run.stages[0].samples === 9))')
    time.sleep(2.5)  # more than a poll of the page
    assert page.js('document.querySelector(".picked").innerText.trim()') == looked_at


def test_focus_stays_where_it_is_while_the_page_follows_a_run(browser, tmp_path, request):
    write(tmp_path / 'stage1' / 'metrics.jsonl', metrics(1, 20))
    write(tmp_path / 'stage1' / 'samples.jsonl', samples(4))
    page = Page(browser, serve([tmp_path], request).url)
    places = {'runs': ('#views a:nth-child(3)', 'thead button', 'input[type=checkbox]'),
              'transcripts': ('#views a', '[data-label="i->c"]')}
    last = 20
    for view, selectors in places.items():
        page.open(view)
        for selector in selectors:
            page.until(f'document.querySelector({json.dumps(selector)})')
            page.js(f'document.querySelector({json.dumps(selector)}).focus()')
            last += 1
            write(tmp_path / 'stage1' / 'metrics.jsonl', metrics(last, last), 'a')
            write(tmp_path / 'stage1' / 'samples.jsonl', samples(1), 'a')
            page.until(f'document.body.innerText.includes("{last} / 120")' if view == 'runs' else
                       f'document.body.innerText.includes("{last - 16} transcripts")')
            assert page.js(f'document.activeElement.matches({json.dumps(selector)})'), selector


def test_link_to_a_sample_that_is_not_read_yet_shows_it_when_it_is(browser, tmp_path, request):
    write(tmp_path / 'stage1' / 'samples.jsonl', samples(2))
    page = Page(browser, serve([tmp_path], request).url)
    page.open('transcripts', **{'in': tmp_path.name, 'stage': 'stage1', 'row': 2})
    page.until('document.body.innerText.includes("No such sample.")')
    write(tmp_path / 'stage1' / 'samples.jsonl', samples(3)[2:], 'a')
    page.until('document.querySelector(".detail .problem")?.innerText.includes("Make 3 of")')


def test_a_view_is_one_of_the_page_s_own(page):
    for view in ('constructor', '__proto__', 'nonsense'):
        page.open(view, run='first')
        page.until('document.body.dataset.view === "curves"')
        assert page.browser.complaints() == []


def test_chart_of_very_many_values_is_drawn(page):
    page.open('runs')
    assert page.js('''(async () => {
      const { chart } = await import('/chart.js');
      const steps = Array.from({ length: 400 }, (_, place) => place + 1);
      const panels = [{ stage: 's', series: Array(400).fill({ name: 'a', colour: '--ink', steps, values: steps }) }];
      const figure = chart({ title: 't', unit: 'u', panels, legend: [] });
      document.getElementById('main').replaceChildren(figure);
    })()''') is None
    page.until('document.querySelectorAll("[data-chart=t] path.line").length === 400')
    assert page.browser.complaints() == []


def test_server_that_has_gone_is_told(browser, tmp_path):
    write(tmp_path / 'stage1' / 'samples.jsonl', samples(4))
    server = subprocess.Popen([sys.executable, 'launch/watch.py', f'--workdir={tmp_path}', '--port=0'],
                              cwd=Path(__file__).resolve().parents[1], stdout=subprocess.PIPE, text=True)
    try:
        Page(browser, server.stdout.readline().split()[0]).open('runs')
    finally:
        server.kill()
        server.communicate()
    browser.until('document.body.innerText.includes("The server does not answer.")')


def test_long_search_goes_on_by_itself_and_says_how_far_it_is(browser, tmp_path, request, monkeypatch):
    monkeypatch.setattr(search, 'SECONDS', 0.0)
    monkeypatch.setattr(search, 'SLICE_ROWS', 20)
    write(tmp_path / 'stage1' / 'samples.jsonl', [{'problem': 'needle', 'turns': []}] + samples(300))
    page = Page(browser, serve([tmp_path], request).url)
    page.open('transcripts', text='needle')
    page.until('document.body.innerText.includes("1 found")')
    assert page.js('document.querySelector(".sample b").innerText') == 'needle'


def test_text_of_a_model_stays_text_wherever_it_is_shown(browser, tmp_path, request):
    run = tmp_path / f'run {EVIL[8:32].replace("/", "_")}'
    evil = turn(EVIL[:50], EVIL, read=EVIL)
    escape, wrong_way = '\x1b[2J\x1b]0;title\x07', '\u202ereversed'
    rows = [{'problem': EVIL, 'instruction': EVIL, 'method': EVIL, 'turns': [evil, evil]},
            {'problem': escape + wrong_way, 'step': 3, 'turns': [turn('wrong', escape), turn('correct', wrong_way)]},
            {'problem': 'long', 'step': 4,
             'turns': [turn('wrong', 'word ' * 2_000_000), turn('correct', 'other ' * 300_000)]}]
    write(run / 'stage1' / 'samples.jsonl', rows)
    with (run / 'stage1' / 'samples.jsonl').open('ab') as file:
        file.write(b'{"problem": "bad \xff\xfe bytes", "turns": []}\nnot JSON\n')
        file.write(json.dumps(samples(1)[0]).encode() + b'\n{"half')
    write(run / 'stage1' / 'metrics.jsonl', [row | {EVIL[:60]: 1.0} for row in metrics(1, 50)])
    (run / 'stage1' / 'config.json').write_text(json.dumps({EVIL: EVIL}))
    (run / 'results.json').write_text(json.dumps([{'method': EVIL, 'seed': EVIL, 'temperature': 0.0, 't1': 0.5}]))
    page = Page(browser, serve([tmp_path], request).url)
    for view in ('runs', 'curves', 'transcripts', 'results', 'config'):
        page.open(view, more='1')
        if view != 'runs':
            page.until('document.body.innerText.includes("<img src=x onerror") || document.querySelector(".samples")')
        if view == 'transcripts':
            page.until('document.querySelectorAll(".sample").length === 5')
            for place in range(5):  # every one in full, the latest first
                page.js(f'document.querySelectorAll(".sample")[{place}].click()')
                page.until('document.querySelector(".detail h4")')
                time.sleep(0.2)
                page.until('document.querySelector(".detail .problem")')
                shown = page.text()
                assert '\x1b' not in shown and '\u202e' not in shown
            assert '<img src=x onerror="window.owned = 1">' in shown
        assert page.js('window.owned') is None
        assert page.js('document.querySelectorAll("script, iframe, main img, main svg[onload]").length') == 1
        assert browser.complaints() == []
    assert page.js('document.querySelectorAll("*").length') < 2000


def test_policy_of_the_page_stops_a_script_even_if_it_were_there(page):
    page.open('runs')
    page.js('''(() => {
      try {
        document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.owned = 1">');
      } catch (error) {
        window.refused = true;
      }
      const script = document.createElement('script');
      script.append('window.owned = 1');
      document.body.append(script);
    })()''')
    assert page.js('window.refused') and page.js('window.owned') is None
