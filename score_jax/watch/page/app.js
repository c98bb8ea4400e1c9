// The page: which view is shown, of which runs, and the polling that keeps it up to date.

import { ask } from './api.js';
import { curvesView } from './curves.js';
import { h, redraw } from './dom.js';
import { CLOSED } from './sample.js';
import { go, link, onChange, state } from './state.js';
import { configView, resultsView, runName, runsView, sorted, written } from './tables.js';
import { Transcripts } from './transcripts.js';

const POLL = 2000; // milliseconds
const COLOURS = 8;
const VIEWS = { runs: 'Runs', curves: 'Curves', transcripts: 'Transcripts', results: 'Results', config: 'Config' };
const KEYS = [
  ['1 … 5', 'runs, curves, transcripts, results, config'],
  ['j  k', 'next, previous transcript'],
  ['/', 'search'],
  ['[  ]', 'previous, next run'],
  ['Esc', 'leave the search, close the transcript'],
  ['?', 'this list'],
];

const main = document.getElementById('main');
const transcripts = new Transcripts();
let about = null;
let runs = [];
let progress = { read: 0, size: 0 };
// A run may have any name, also that of something every object has.
const curves = Object.create(null); // {run: {stage: columns}}
const details = Object.create(null); // {run: results and configs}
const versions = Object.create(null); // {run: what curves and details were asked for at}
let drawn = null; // what is on the screen, so that nothing is drawn twice
let framed = null; // and what is above it
let latest = null; // the run that is looked at where none is chosen

const view = () =>
  Object.hasOwn(VIEWS, state.view) ? state.view : state.run.length ? 'curves' : runs.length === 1 ? 'curves' : 'runs';

// The runs that are looked at: the chosen ones that exist, else the one that was written last when it was first asked.
function chosen() {
  const exists = (name) => runs.some((run) => run.name === name);
  const there = state.run.filter(exists);
  if (there.length || !runs.length) return there;
  if (!exists(latest)) latest = [...runs].sort((a, b) => written(b) - written(a))[0].name;
  return [latest];
}

function colours(names) {
  return Object.fromEntries(names.map((name, place) => [name, `--run${place % COLOURS}`]));
}

function toggle(name) {
  const names = state.run.length ? state.run : [];
  go({ run: names.includes(name) ? names.filter((other) => other !== name) : [...names, name] }, { quiet: true });
}

async function poll() {
  try {
    ({ runs, progress } = await ask('runs'));
    document.body.classList.remove('offline');
    await refresh();
  } catch (error) {
    document.body.classList.add('offline');
    document.getElementById('status').textContent =
      error instanceof TypeError ? 'The server does not answer.' : error.message;
  }
  setTimeout(poll, document.hidden ? 5 * POLL : POLL);
}

// Fetches what the view needs and does not have, then draws.
async function refresh() {
  const names = chosen();
  if (['curves', 'results', 'config'].includes(view())) {
    await Promise.all(
      names.map(async (name) => {
        const run = runs.find((one) => one.name === name);
        const stamp = `${written(run)} ${run.stages.map((stage) => stage.version)}`;
        if (versions[name]?.stamp === stamp && details[name]) return;
        const had = versions[name]?.stages ?? {};
        const stale = run.stages.filter((stage) => stage.step !== null && had[stage.name] !== stage.version);
        const [detail, ...answers] = await Promise.all([
          ask('details', { run: name }),
          ...stale.map((stage) => ask('curves', { run: name, stage: stage.name })),
        ]);
        details[name] = detail;
        const columns = {
          ...curves[name],
          ...Object.fromEntries(stale.map((stage, place) => [stage.name, answers[place].columns])),
        };
        curves[name] = Object.fromEntries(
          run.stages
            .filter((stage) => columns[stage.name] && stage.step !== null)
            .map((stage) => [stage.name, columns[stage.name]]),
        );
        versions[name] = {
          stamp,
          stages: { ...had, ...Object.fromEntries(stale.map((stage, place) => [stage.name, answers[place].version])) },
        };
      }),
    );
  }
  draw();
}

function draw() {
  const names = chosen();
  const palette = colours(names);
  document.title = `${names.length === 1 ? names[0] : `${names.length} runs`} · score_jax`;
  drawFrame(names, palette);
  if (view() === 'transcripts') {
    const samples = runs
      .filter((run) => names.includes(run.name))
      .flatMap((run) => run.stages.map((stage) => stage.samples))
      .join();
    if (main.firstChild !== transcripts.element) main.replaceChildren(transcripts.element);
    transcripts.update({ about, colours: palette, runs: names, samples });
    drawn = null;
    return;
  }
  const shown = JSON.stringify([
    view(),
    names,
    state.more,
    state.only,
    state.sort,
    state.find,
    names.map((name) => versions[name]),
    view() === 'runs' && [runs, Math.floor(Date.now() / 60000)],
  ]);
  if (shown === drawn) return;
  drawn = shown;
  const parts = { runs: runsView, curves: curvesView, results: resultsView, config: configView }[view()]({
    about,
    runs: view() === 'runs' ? runs : names,
    selected: state.run,
    toggle,
    curves,
    details,
    colours: palette,
  });
  redraw(main, parts.flat(Infinity).filter(Boolean));
}

function drawFrame(names, palette) {
  document.body.dataset.view = view();
  const reading = progress.size - progress.read > 1 << 20;
  const unreadable = runs.filter((run) => names.includes(run.name)).reduce((sum, run) => sum + run.unreadable, 0);
  document.getElementById('status').textContent = [
    reading && `reading ${Math.floor((100 * progress.read) / progress.size)} %`,
    unreadable && view() === 'transcripts' && `${unreadable} lines are not readable`,
  ]
    .filter(Boolean)
    .join(' · ');
  const shown = JSON.stringify([view(), names, location.hash, runs.length > 1]);
  if (shown === framed) return;
  framed = shown;
  redraw(
    document.getElementById('views'),
    Object.entries(VIEWS).map(([key, title]) =>
      h('a', { href: link({ view: key }), 'aria-current': key === view() ? 'page' : null }, title),
    ),
  );
  const selection = document.getElementById('selection');
  selection.hidden = view() === 'runs' && state.run.length < 2;
  redraw(selection, [
    ...names.map((name) => {
      const label = runName(name, palette);
      return h(
        'span',
        { class: 'picked' },
        label,
        names.length > 1 &&
          h('button', { type: 'button', 'aria-label': `Leave out ${name}`, onclick: () => toggle(name) }, '✕'),
      );
    }),
    runs.length > 1
      ? h(
          'a',
          { class: 'add', href: link({ view: view() === 'runs' ? 'curves' : 'runs', run: names }) },
          view() === 'runs' ? 'look at them →' : '+ compare',
        )
      : '',
  ]);
}

// --- keys

function onKey(event) {
  const typing = event.target.matches?.('input[type=search], select');
  if (event.key === 'Escape') {
    if (typing) event.target.blur();
    else if (view() === 'transcripts' && state.row) go(CLOSED);
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const shown = Object.keys(VIEWS)[Number(event.key) - 1];
  if (shown) go({ view: shown });
  else if (event.key === '/') document.getElementById(view() === 'runs' ? 'find' : 'search')?.focus();
  else if (event.key === '?') help();
  else if (event.key === '[' || event.key === ']') otherRun(event.key === ']' ? 1 : -1);
  else if (view() === 'transcripts' && ['j', 'ArrowDown'].includes(event.key)) transcripts.step(1);
  else if (view() === 'transcripts' && ['k', 'ArrowUp'].includes(event.key)) transcripts.step(-1);
  else return;
  event.preventDefault();
}

function otherRun(by) {
  const order = sorted(runs);
  const at = order.findIndex((run) => run.name === chosen()[0]);
  const run = order[(at + by + order.length) % order.length];
  if (run) go({ run: [run.name], ...CLOSED });
}

function help() {
  const dialog = document.getElementById('help');
  dialog.replaceChildren(
    h('h3', null, 'Keys'),
    h(
      'dl',
      null,
      KEYS.map(([keys, what]) => [
        h(
          'dt',
          null,
          keys.split(/\s+/).map((key) => h('kbd', null, key)),
        ),
        h('dd', null, what),
      ]),
    ),
    h('form', { method: 'dialog' }, h('button', null, 'close')),
  );
  dialog.showModal();
}

addEventListener('keydown', onKey);
document.getElementById('help-open').addEventListener('click', help);
onChange(() => refresh().catch(() => {}));
about = await ask('about');
poll();
