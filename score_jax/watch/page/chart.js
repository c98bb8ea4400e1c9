// One chart: a panel for each stage side by side, a line for each run and key, drawn as SVG.

import { h, short, svg } from './dom.js';

const HEIGHT = 210;
const MARGIN = { left: 46, right: 8, top: 24, bottom: 26, gap: 18 };
const POINTS_RAW = 40; // up to this many points a line is drawn as it is, beyond it is smoothed over faint raw points

// `panels`: [{stage, series: [{name, colour, dashed, steps, values}]}]; colours are names of CSS variables.
// `levels`: [{value, colour}], drawn across. `onStep(stage, step)` is called on a click.
export function chart({ title, unit, caption, panels, levels = [], fromZero, zeroLine, legend, onStep }) {
  const drawing = h('div', { class: 'drawing' });
  const figure = h(
    'figure',
    { 'data-chart': title },
    h('h3', null, title),
    h('p', { class: 'legend' }, legend.map(swatch)),
    drawing,
    caption && h('figcaption', null, caption),
  );
  const draw = () => {
    const width = drawing.clientWidth;
    if (width > 0) drawing.replaceChildren(...plot({ title, unit, width, panels, levels, fromZero, zeroLine, onStep }));
  };
  new ResizeObserver(draw).observe(drawing);
  return figure;
}

export function swatch({ name, colour, dashed }) {
  const line = svg(
    'svg',
    { width: 20, height: 8, 'aria-hidden': 'true' },
    svg('path', { d: 'M1 4H19', class: dashed ? 'line dashed' : 'line' }),
  );
  line.style.color = `var(${colour})`;
  return h('span', null, line, name);
}

// Centred moving average over about a twentieth of the points; null is left out, ends use what they have.
export function smooth(values) {
  const half = Math.floor(values.length / 40);
  return values.map((value, place) => {
    if (value === null) return null;
    const seen = values.slice(Math.max(place - half, 0), place + half + 1).filter((other) => other !== null);
    return seen.reduce((sum, other) => sum + other, 0) / seen.length;
  });
}

function plot({ title, unit, width, panels, levels, fromZero, zeroLine, onStep }) {
  const prepared = panels.map((panel) => ({
    ...panel,
    last: extent([1, ...panel.series.map((one) => one.steps.at(-1) ?? 0)])[1],
    series: panel.series.map((one) => ({
      ...one,
      line: one.values.length > POINTS_RAW ? smooth(one.values) : one.values,
    })),
  }));
  const crowded = Math.max(...panels.map((panel) => panel.series.length)) > 2;
  const y = scale(prepared, levels, fromZero, crowded);
  const room = width - MARGIN.left - MARGIN.right - MARGIN.gap * (prepared.length - 1);
  const longest = Math.max(...prepared.map((panel) => panel.last));
  const shares = prepared.map((panel) => Math.max(panel.last / longest, 0.4));
  const total = shares.reduce((sum, share) => sum + share, 0);
  const image = svg('svg', { width, height: HEIGHT, role: 'img', 'aria-label': `${title}, ${unit}` });
  const tip = h('div', { class: 'tip', hidden: true });
  let left = MARGIN.left;
  prepared.forEach((panel, place) => {
    const size = (room * shares[place]) / total;
    const x = (step) => left0 + (size * step) / panel.last;
    const left0 = left;
    image.append(
      axes(panel, left0, size, x, y, place === 0),
      ...lines(panel, levels, left0, size, x, y, zeroLine, crowded),
    );
    watchPointer({ image, tip, panel, left: left0, size, x, y, onStep });
    left += size + MARGIN.gap;
  });
  image.append(svg('text', { x: MARGIN.left - 40, y: 12, class: 'unit' }, unit));
  return [image, tip];
}

// The least and the largest of any number of values; a call takes some ten thousand arguments and no more.
const extent = (values) =>
  values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

function scale(panels, levels, fromZero, crowded) {
  // Values of a faint outlier do not flatten the line: with many points the smoothed ones decide, and most raw ones.
  let values = levels.map((level) => level.value);
  for (const panel of panels) {
    for (const one of panel.series) {
      values = values.concat(one.line.filter((value) => value !== null));
      if (!crowded) {
        const raw = one.values.filter((value) => value !== null).sort((a, b) => a - b);
        if (raw.length) values.push(raw[Math.floor(raw.length * 0.01)], raw[Math.ceil(raw.length * 0.99) - 1]);
      }
    }
  }
  let [low, high] = extent(values);
  if (fromZero && low >= 0) low = 0;
  const size = Math.max(Math.abs(low), Math.abs(high));
  if (high - low <= 1e-6 * size) [low, high] = low === 0 ? [0, 1] : [low - size / 10, high + size / 10];
  const ticks = round(low, high, 5);
  [low, high] = [Math.min(low, ticks[0]), Math.max(high, ticks.at(-1))];
  if (!(fromZero && low === 0)) low -= (high - low) * 0.04;
  high += (high - low) * 0.04;
  const bottom = HEIGHT - MARGIN.bottom;
  const y = (value) => bottom - ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (bottom - MARGIN.top);
  return Object.assign(y, { ticks: ticks.filter((tick) => tick >= low && tick <= high), low, high });
}

// About `wanted` round numbers from `low` to `high`.
function round(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick <= high / step + 1e-9; tick++) ticks.push(tick * step);
  return ticks.length ? ticks : [low];
}

function axes(panel, left, size, x, y, first) {
  const bottom = HEIGHT - MARGIN.bottom;
  const group = svg('g', { class: 'axes' });
  for (const tick of y.ticks) {
    group.append(svg('line', { x1: left, x2: left + size, y1: y(tick), y2: y(tick), class: 'grid' }));
    if (first) group.append(svg('text', { x: left - 7, y: y(tick) + 3.5, 'text-anchor': 'end' }, short(tick)));
  }
  group.append(svg('line', { x1: left, x2: left + size, y1: bottom, y2: bottom, class: 'floor' }));
  for (const tick of round(0, panel.last, Math.max(Math.floor(size / 48), 1))) {
    if (tick === 0 && !first) continue;
    const anchor = x(tick) > left + size - 14 ? 'end' : 'middle';
    group.append(svg('text', { x: x(tick), y: bottom + 16, 'text-anchor': anchor }, String(Math.round(tick))));
  }
  const name = panel.stage.length > size / 7 ? panel.stage.slice(0, Math.max(size / 7 - 1, 3)) + '…' : panel.stage;
  group.append(svg('text', { x: left + size, y: MARGIN.top - 12, 'text-anchor': 'end', class: 'stage' }, name));
  return group;
}

function lines(panel, levels, left, size, x, y, zeroLine, crowded) {
  const marks = [];
  if (zeroLine && y.low < 0) marks.push(svg('line', { x1: left, x2: left + size, y1: y(0), y2: y(0), class: 'zero' }));
  for (const level of levels) {
    const line = svg('line', { x1: left, x2: left + size, y1: y(level.value), y2: y(level.value), class: 'level' });
    line.style.color = `var(${level.colour})`;
    marks.push(line);
  }
  for (const one of panel.series) {
    const group = svg('g');
    group.style.color = `var(${one.colour})`;
    if (one.values.length > POINTS_RAW && !crowded) {
      group.append(
        svg('path', {
          class: 'raw',
          d: one.steps
            .map((step, place) =>
              one.values[place] === null ? '' : `M${x(step).toFixed(1)} ${y(one.values[place]).toFixed(1)}h0`,
            )
            .join(''),
        }),
      );
    }
    let pen = 'M';
    const path = one.steps
      .map((step, place) => {
        if (one.line[place] === null) {
          pen = 'M';
          return '';
        }
        const piece = `${pen}${x(step).toFixed(1)} ${y(one.line[place]).toFixed(1)}`;
        pen = 'L';
        return piece;
      })
      .join('');
    group.append(
      svg('path', { d: path + (one.values.length === 1 ? 'h0' : ''), class: one.dashed ? 'line dashed' : 'line' }),
    );
    marks.push(group);
  }
  return marks;
}

function watchPointer({ image, tip, panel, left, size, x, y, onStep }) {
  const bottom = HEIGHT - MARGIN.bottom;
  const cursor = svg('line', { y1: MARGIN.top, y2: bottom, class: 'cursor', visibility: 'hidden' });
  const area = svg('rect', {
    x: left,
    y: MARGIN.top,
    width: Math.max(size, 0),
    height: bottom - MARGIN.top,
    class: 'area',
  });
  const nearest = (event) => {
    const step = ((event.clientX - image.getBoundingClientRect().left - left) / size) * panel.last;
    return panel.series.map((one) => {
      let best = 0;
      one.steps.forEach((other, place) => {
        if (Math.abs(other - step) < Math.abs(one.steps[best] - step)) best = place;
      });
      return { ...one, step: one.steps[best], value: one.line[best] };
    });
  };
  area.addEventListener('pointermove', (event) => {
    const found = nearest(event);
    const place = x(found[0].step);
    cursor.setAttribute('x1', place);
    cursor.setAttribute('x2', place);
    cursor.setAttribute('visibility', 'visible');
    tip.replaceChildren(
      h('b', null, `${panel.stage}, step ${found[0].step}`),
      ...found.slice(0, 12).map((one) => {
        const row = h(
          'span',
          null,
          h('i', { class: one.dashed ? 'dashed' : '' }),
          `${one.name} `,
          h('b', null, short(one.value ?? NaN)),
        );
        row.firstChild.style.color = `var(${one.colour})`;
        return row;
      }),
    );
    tip.hidden = false;
    const edge = image.clientWidth - tip.offsetWidth;
    const before = place - tip.offsetWidth - 12;
    const least = before > 0 && place + 12 > edge ? before : 0;
    tip.style.left = `${Math.max(Math.min(place + 12, edge), least)}px`;
  });
  area.addEventListener('pointerleave', () => {
    tip.hidden = true;
    cursor.setAttribute('visibility', 'hidden');
  });
  if (onStep) area.addEventListener('click', (event) => onStep(panel.stage, nearest(event)[0].step));
  image.append(cursor, area);
}
