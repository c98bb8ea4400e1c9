// The view of curves: the charts of the report, live, for one run or several side by side.

import { chart } from './chart.js';
import { h } from './dom.js';
import { CLOSED } from './sample.js';
import { go, state } from './state.js';

const OWN = ['turn1', 'turn2', 'turn3', 'turn4', 'better', 'worse', 'ink'];

// `curves`: {run: {stage: columns}}; `details`: {run: {results}}; `colours`: {run: CSS variable}.
export function curvesView({ about, curves, details, colours, runs }) {
  const stages = [...new Set(runs.flatMap((run) => Object.keys(curves[run] ?? {})))].sort(inOrder(runs, curves));
  const figures = about.charts.map((spec) => figure(spec, { stages, curves, details, colours, runs })).filter(Boolean);
  if (!figures.length) {
    return [h('p', { class: 'empty' }, 'No curves yet: they begin with the first step that a stage logs.')];
  }
  const known = new Set(about.charts.flatMap((spec) => spec.lines.map((line) => line.key)));
  const others = [...new Set(stages.flatMap((stage) => runs.flatMap((run) => Object.keys(curves[run]?.[stage] ?? {}))))]
    .filter((key) => key !== 'step' && (!known.has(key) || key === 'loss'))
    .sort();
  const more = h(
    'details',
    { class: 'more', open: state.more === '1' },
    h('summary', null, `Everything else that is logged (${others.length})`),
  );
  more.addEventListener('toggle', () => go({ more: more.open ? '1' : null }, { quiet: true }));
  if (state.more === '1') {
    more.append(
      h(
        'div',
        { class: 'charts' },
        others.map((key) =>
          figure(
            {
              title: key,
              unit: '',
              caption: '',
              scale: 1,
              from_zero: false,
              lines: [{ key, label: key, colour: 'ink' }],
            },
            { stages, curves, details: {}, colours, runs, all: true },
          ),
        ),
      ),
    );
  }
  return [
    h(
      'p',
      { class: 'caption' },
      'Stages stand side by side in the order they were trained. Where there are many points, the ' +
        'line is a moving average over a twentieth of them, and the points behind it are what was logged (means of ' +
        'neighbours beyond 400). Click into a chart for the transcripts of that step.',
    ),
    h('div', { class: 'charts' }, figures),
    others.length > 0 && more,
  ];
}

// In the order that the first run which has both stages gives them.
function inOrder(runs, curves) {
  const place = (stage) => Math.max(...runs.map((run) => Object.keys(curves[run] ?? {}).indexOf(stage)));
  return (a, b) => place(a) - place(b);
}

function figure(spec, { stages, curves, details, colours, runs, all }) {
  const several = runs.length > 1;
  const has = (columns, key) => columns?.[key]?.some((value) => value !== null);
  const supervised = (columns) => !['t1', 't2', 'delta', 'reward', 'kl_turn1', 'kl_turn2'].some((key) => columns[key]);
  const panels = stages
    .map((stage) => ({
      stage,
      series: runs
        .flatMap((run) =>
          spec.lines.map((line, place) => {
            const columns = curves[run]?.[stage];
            if (!has(columns, line.key) || (!all && supervised(columns) !== spec.supervised)) return null;
            return {
              key: line.key,
              name: several ? (spec.lines.length > 1 ? `${run} · ${line.label}` : run) : line.label,
              colour: several ? colours[run] : `--${OWN.includes(line.colour) ? line.colour : 'ink'}`,
              dashed: several && place === 0 && spec.lines.length > 1,
              steps: columns.step,
              values: columns[line.key].map((value) => (value === null ? null : value * spec.scale)),
            };
          }),
        )
        .filter(Boolean),
    }))
    .filter((panel) => panel.series.length);
  if (!panels.length) return null;
  const lines = spec.lines.filter((line) => panels.some(({ series }) => series.some(({ key }) => key === line.key)));
  const base = several || spec.supervised ? null : baseRow(details[runs[0]]?.results ?? []);
  const levels = lines
    .map((line) => ({ value: (base?.[line.key] ?? NaN) * spec.scale, colour: `--${line.colour}` }))
    .filter((level) => Number.isFinite(level.value));
  const legend = several
    ? lines.length > 1
      ? lines.map((line, place) => ({ name: line.label, colour: '--muted', dashed: place === 0 }))
      : []
    : lines.map((line) => ({ name: line.label, colour: `--${line.colour}` }));
  if (levels.length)
    legend.push({ name: base.temperature === 1 ? 'base' : `base, ${base.decoding}`, colour: '--muted', dashed: true });
  return chart({
    title: spec.title,
    unit: spec.unit,
    caption: spec.caption,
    panels,
    levels,
    fromZero: spec.from_zero,
    zeroLine: spec.lines.some((line) => line.key === 'delta'),
    legend,
    onStep: (stage, step) => go({ view: 'transcripts', source: stage, upto: String(Math.floor(step)), ...CLOSED }),
  });
}

// The base's row at the temperature nearest to that of training.
function baseRow(results) {
  const rows = results.filter((row) => row.method === 'base' && row.temperature !== null);
  return rows.sort((a, b) => Math.abs(a.temperature - 1) - Math.abs(b.temperature - 1))[0];
}
