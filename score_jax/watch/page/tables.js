// The views that are tables: all runs, their results, their configs.

import { ago, count, h, percent, short, signed } from './dom.js';
import { go, link, state } from './state.js';

const LIVE = 90; // seconds since the last write, within which a run that is not done counts as running

// The stage that was written last, but no evaluation.
export function current(run) {
  const stages = run.stages.filter((stage) => stage.step !== null);
  return stages.sort((a, b) => (b.written ?? 0) - (a.written ?? 0))[0];
}

export const written = (run) => Math.max(0, ...run.stages.map((stage) => stage.written ?? 0));

export function isLive(run) {
  const stage = current(run);
  return Boolean(stage) && stage.step < (stage.steps ?? Infinity) && Date.now() / 1000 - written(run) < LIVE;
}

// --- runs

const RUN_COLUMNS = [
  { key: 'name', title: 'run', value: (run) => run.name.toLowerCase() },
  { key: 'stage', title: 'stage', value: (run) => current(run)?.name ?? '' },
  { key: 'step', title: 'step', value: (run) => current(run)?.step ?? -1 },
  { key: 't1', title: 'accuracy@t1', value: (run) => current(run)?.t1 ?? -2 },
  { key: 't2', title: 'accuracy@t2', value: (run) => current(run)?.t2 ?? -2 },
  { key: 'delta', title: 'delta', value: (run) => current(run)?.delta ?? -2 },
  { key: 'changed', title: 'changed', value: (run) => current(run)?.changed ?? -2 },
  { key: 'samples', title: 'transcripts', value: (run) => run.stages.reduce((sum, stage) => sum + stage.samples, 0) },
  { key: 'written', title: 'last written', value: written },
];

export function sorted(runs) {
  const [key, direction] = (state.sort ?? 'written-down').split('-');
  const column = RUN_COLUMNS.find((one) => one.key === key) ?? RUN_COLUMNS.at(-1);
  const sign = direction === 'up' ? 1 : -1;
  const text = (state.find ?? '').toLowerCase();
  return runs
    .filter((run) => run.name.toLowerCase().includes(text))
    .sort((a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      return sign * (x < y ? -1 : x > y ? 1 : 0) || (a.name < b.name ? -1 : 1);
    });
}

export function runsView({ runs, colours, selected, toggle }) {
  if (!runs.length)
    return [h('p', { class: 'empty' }, 'No run yet. It appears here when launch/main.py has begun to write.')];
  const find = h('input', {
    type: 'search',
    id: 'find',
    placeholder: 'find a run',
    'aria-label': 'Find a run',
    value: state.find ?? '',
  });
  find.addEventListener('input', () => go({ find: find.value }, { quiet: true }));
  const shown = sorted(runs);
  const [by, direction] = (state.sort ?? 'written-down').split('-');
  const heads = RUN_COLUMNS.map(({ key, title }) =>
    h(
      'th',
      { scope: 'col', 'aria-sort': key === by ? (direction === 'up' ? 'ascending' : 'descending') : null },
      h(
        'button',
        {
          type: 'button',
          onclick: () => go({ sort: `${key}-${key === by && direction === 'down' ? 'up' : 'down'}` }, { quiet: true }),
        },
        title,
        key === by ? (direction === 'up' ? ' ↑' : ' ↓') : '',
      ),
    ),
  );
  return [
    h(
      'div',
      { class: 'bar' },
      find,
      h(
        'p',
        { class: 'caption' },
        `${count(shown.length)} of ${count(runs.length)} runs. ` +
          'Accuracies are means over the last tenth of the stage that was written last. ' +
          'Tick several to see them side by side.',
      ),
    ),
    h(
      'table',
      { class: 'runs' },
      h('thead', null, h('tr', null, h('th', null), heads)),
      h(
        'tbody',
        null,
        shown.map((run) => runRow(run, colours, selected, toggle)),
      ),
    ),
  ];
}

function runRow(run, colours, selected, toggle) {
  const stage = current(run) ?? {};
  const tick = h('input', { type: 'checkbox', 'aria-label': `Compare ${run.name}`, onchange: () => toggle(run.name) });
  tick.checked = selected.includes(run.name);
  if (colours[run.name]) tick.style.accentColor = `var(${colours[run.name]})`;
  const done = stage.steps ? Math.min(stage.step / stage.steps, 1) : 0;
  const meter = h('span', { class: 'meter' }, h('i'));
  meter.firstChild.style.width = `${100 * done}%`;
  const cell = (title, ...content) => h('td', { 'data-label': title }, content);
  return h(
    'tr',
    { class: selected.includes(run.name) ? 'chosen' : '' },
    h('td', { class: 'tick' }, tick),
    h(
      'th',
      { scope: 'row', title: run.path },
      isLive(run) && h('span', { class: 'live', title: 'running' }),
      h('a', { href: link({ view: 'curves', run: [run.name] }) }, run.name),
    ),
    cell('stage', stage.name ?? '–'),
    cell(
      'step',
      stage.step === undefined
        ? '–'
        : h(
            'span',
            { class: 'steps-done' },
            `${count(stage.step)}${stage.steps ? ` / ${count(stage.steps)}` : ''}`,
            meter,
          ),
    ),
    cell('accuracy@t1', percent(stage.t1)),
    cell('accuracy@t2', percent(stage.t2)),
    cell(
      'delta',
      h('b', { class: stage.delta > 0.005 ? 'better' : stage.delta < -0.005 ? 'worse' : '' }, signed(stage.delta)),
    ),
    cell('changed', percent(stage.changed)),
    cell('transcripts', count(run.stages.reduce((sum, one) => sum + one.samples, 0))),
    cell('last written', written(run) ? ago(Date.now() / 1000 - written(run)) : '–'),
  );
}

// --- results

export function resultsView({ about, details, colours, runs }) {
  const groups = new Map();
  for (const run of runs) {
    for (const row of details[run]?.results ?? []) {
      groups.set(row.decoding, [...(groups.get(row.decoding) ?? []), { run, row }]);
    }
  }
  if (!groups.size) return [h('p', { class: 'empty' }, 'No evaluation yet: there is no readable results.json.')];
  const parts = [...groups].map(([decoding, rows]) => [
    h('h3', null, decoding[0].toUpperCase() + decoding.slice(1)),
    h(
      'table',
      { class: 'results' },
      h(
        'thead',
        null,
        h(
          'tr',
          null,
          h('th', { scope: 'col' }, 'method'),
          about.columns.map(({ title }) => h('th', { scope: 'col' }, title)),
        ),
      ),
      h(
        'tbody',
        null,
        rows.map(({ run, row }) =>
          h(
            'tr',
            null,
            h(
              'th',
              { scope: 'row' },
              row.label,
              runs.length > 1 && runName(run, colours),
              row.n !== null && h('small', null, `n = ${count(row.n)}`),
            ),
            about.columns.map((column) => resultCell(row, column)),
          ),
        ),
      ),
    ),
  ]);
  return [
    parts,
    h(
      'p',
      { class: 'caption' },
      'In percent, with the 95 % interval below. accuracy@t1 and @t2: right at the first and at ' +
        'the second attempt. delta: the difference in points; above zero is self-correction, and an interval that ' +
        'leaves out zero makes it credible. i→c: wrong first, then right; c→i: right first, then wrong; both of all ' +
        'problems, so delta = i→c − c→i. changed: the answer differs between the turns; near zero is copying.',
    ),
  ];
}

function resultCell(row, { key, title, difference }) {
  const [low, value, high] = ['_low', '', '_high'].map((end) => row[key + end]);
  const show = difference ? signed : percent;
  const tone =
    difference && low > 0 && low !== null ? 'better' : difference && high < 0 && high !== null ? 'worse' : '';
  return h(
    'td',
    { 'data-label': title },
    h('b', { class: tone }, show(value ?? NaN)),
    low !== null && high !== null && h('small', null, `${show(low)}${difference ? ' to ' : '–'}${show(high)}`),
  );
}

export function runDot(run, colours) {
  const dot = h('i', { class: 'dot', title: run });
  dot.style.background = `var(${colours[run]})`;
  return dot;
}

export const runName = (run, colours) => h('small', { class: 'of-run' }, runDot(run, colours), run);

// --- configs

export function configView({ details, colours, runs }) {
  const stages = [...new Set(runs.flatMap((run) => Object.keys(details[run]?.configs ?? {})))];
  if (!stages.length) return [h('p', { class: 'empty' }, 'No readable config.json.')];
  const several = runs.length > 1;
  const only = h('input', {
    type: 'checkbox',
    onchange: () => go({ only: only.checked ? 'differences' : null }, { quiet: true }),
  });
  only.checked = state.only === 'differences';
  return [
    several && h('label', { class: 'bar' }, only, ' only what differs'),
    stages.map((stage) => {
      const configs = runs.map((run) => details[run]?.configs[stage] ?? {});
      const keys = [...new Set(configs.flatMap(Object.keys))].sort();
      const rows = keys.map((key) => ({
        key,
        values: configs.map((config) => config[key]),
        differs: new Set(configs.map((config) => config[key])).size > 1,
      }));
      const shown = several && only.checked ? rows.filter((row) => row.differs) : rows;
      return [
        h('h3', null, stage),
        shown.length
          ? h(
              'div',
              { class: 'scroll' },
              h(
                'table',
                { class: 'config' },
                several &&
                  h(
                    'thead',
                    null,
                    h(
                      'tr',
                      null,
                      h('th', null),
                      runs.map((run) => h('th', { scope: 'col' }, runName(run, colours))),
                    ),
                  ),
                h(
                  'tbody',
                  null,
                  shown.map(({ key, values, differs }) =>
                    h(
                      'tr',
                      { class: differs ? 'differs' : '' },
                      h('th', { scope: 'row' }, key),
                      values.map((value) => h('td', null, value === undefined ? '–' : h('code', null, value))),
                    ),
                  ),
                ),
              ),
            )
          : h('p', { class: 'caption' }, 'The same in all of them.'),
      ];
    }),
  ];
}
