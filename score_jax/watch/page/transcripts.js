// The view of transcripts: chips that filter, a list that grows as it is scrolled, and one sample in full.

import { ask } from './api.js';
import { count, h, redraw } from './dom.js';
import { back, CLOSED, highlight, show } from './sample.js';
import { go, link, state } from './state.js';
import { runDot } from './tables.js';

const PAGE = 50;

// What the list is a list of; a change of it starts the list anew.
const question = (runs) => ({
  run: runs,
  label: state.label,
  source: state.source,
  upto: state.upto,
  text: state.text,
});

export class Transcripts {
  constructor() {
    this.chips = h('div', { class: 'chips', role: 'group', 'aria-label': 'Filters' });
    this.sources = h('select', {
      'aria-label': 'Stage or method',
      onchange: () => go({ source: this.sources.value, ...CLOSED }),
    });
    this.search = h('input', {
      type: 'search',
      id: 'search',
      placeholder: 'search problems and answers  ( / )',
      maxlength: 1000,
      'aria-label': 'Search',
    });
    this.search.addEventListener('input', () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => go({ text: this.search.value, ...CLOSED }, { quiet: true }), 250);
    });
    this.upto = h('span');
    this.found = h('p', { class: 'caption', role: 'status' });
    this.list = h('ol', { class: 'samples' });
    this.end = h('div', { class: 'end' });
    this.detail = h('section', { class: 'detail', 'aria-label': 'Transcript', tabindex: '-1' });
    const side = h('div', { class: 'side' }, this.found, this.list, this.end);
    this.element = h(
      'div',
      { class: 'transcripts' },
      h('div', { class: 'filters' }, h('div', { class: 'bar' }, this.search, this.sources, this.upto), this.chips),
      h('div', { class: 'split' }, side, this.detail),
    );
    for (const scrolled of [side, window])
      scrolled.addEventListener('scroll', () => this.endIsNear() && this.more(), { passive: true });
  }

  // Called whenever the address or the number of samples may have changed.
  update({ about, colours, runs, samples }) {
    Object.assign(this, { about, colours, runs });
    const asked = JSON.stringify(question(runs));
    if (document.activeElement !== this.search) this.search.value = state.text ?? '';
    if (asked !== this.asked) {
      this.asked = asked;
      this.restart();
    }
    if (`${asked} ${samples}` !== this.counted) {
      this.counted = `${asked} ${samples}`;
      this.recount();
    }
    this.upto.replaceChildren(
      ...(state.upto
        ? [
            h(
              'button',
              { class: 'chip on', type: 'button', title: 'Remove', onclick: () => go({ upto: null, ...CLOSED }) },
              `up to step ${state.upto} ✕`,
            ),
          ]
        : []),
    );
    this.open();
  }

  restart() {
    this.stop?.abort();
    this.stop = new AbortController();
    Object.assign(this, { rows: [], next: undefined, scanned: 0, busy: false, fresh: true });
    this.list.replaceChildren();
    this.list.parentElement.scrollTop = 0;
    this.more();
  }

  // Asks for the next page; searches on where a page came back short, for as long as its end is in sight.
  async more() {
    if (this.busy || this.next === null) return;
    this.busy = true;
    const { signal } = this.stop;
    const from = this.next
      ? { 'run-from': this.next[0], 'stage-from': this.next[1], 'row-from': String(this.next[2]) }
      : {};
    try {
      const answer = await ask('samples', { ...question(this.runs), limit: String(PAGE), ...from }, signal);
      Object.assign(this, { next: answer.next, scanned: this.scanned + answer.scanned });
      this.rows.push(...answer.rows);
      this.list.append(...answer.rows.map((row) => this.item(row)));
      this.mark(false);
      this.tell();
      if (this.fresh && this.rows.length && !state.row && matchMedia('(min-width: 60rem)').matches) {
        this.fresh = false;
        this.select(this.rows[0], true);
      }
    } catch (error) {
      if (error.name !== 'AbortError') this.found.textContent = error.message;
      if (error.name === 'AbortError') return;
      this.next = null;
    }
    this.busy = false;
    if (this.endIsNear()) setTimeout(() => this.more());
  }

  // Whether the end of the list is seen, or soon will be; not while the list is hidden.
  endIsNear() {
    return this.end.offsetParent !== null && this.end.getBoundingClientRect().top < innerHeight + 600;
  }

  async recount() {
    const asked = this.counted;
    const counts = await ask('counts', question(this.runs)).catch(() => null);
    if (!counts || asked !== this.counted) return;
    this.counts = counts;
    const isKind = (name) => this.about.kinds.some((kind) => kind.name === name);
    const chip = (name, title, content, tone = '') => {
      const on = state.label.includes(name);
      const others = state.label.filter((other) => other !== name && !(isKind(name) && isKind(other)));
      const label = on ? others : [...others, name];
      return h(
        'button',
        {
          class: `chip ${on ? 'on' : ''} ${tone}`,
          type: 'button',
          'aria-pressed': String(on),
          title,
          'data-label': name,
          id: `chip ${name}`,
          onclick: () => go({ label, ...CLOSED }),
        },
        content,
        h('b', null, count(counts.labels[name] ?? 0)),
      );
    };
    const kinds = this.about.kinds.map(({ name, title, caption }) =>
      chip(name, caption, title, `way-of ${toneOf(name)}`),
    );
    const outcomes = Object.keys(counts.labels).filter(
      (name) =>
        !isKind(name) &&
        !['copied', 'truncated', 'correct'].includes(name) &&
        (counts.labels[name] || state.label.includes(name)),
    );
    redraw(this.chips, [
      ...kinds,
      h('i', { class: 'rule' }),
      chip('copied', 'The last answer is the first one again.', 'copied'),
      chip('truncated', 'A response was cut off at the limit of tokens.', 'truncated'),
      ...outcomes.map((name) => chip(name, `In any turn, the verifier said: ${name}`, name.replaceAll('_', ' '))),
    ]);
    const all = Object.values(counts.sources).reduce((sum, one) => sum + one, 0);
    const names = Object.keys(counts.sources);
    if (state.source && !names.includes(state.source)) names.push(state.source);
    this.sources.replaceChildren(
      h('option', { value: '' }, `all stages (${count(all)})`),
      ...names.map((name) =>
        h('option', { value: name, selected: name === state.source }, `${name} (${count(counts.sources[name] ?? 0)})`),
      ),
    );
    this.sources.value = state.source ?? '';
    this.tell();
  }

  tell() {
    const total = this.counts?.total ?? 0;
    const found = state.text
      ? `${count(this.rows.length)}${this.next ? '+' : ''} found`
      : `${count(total)} transcripts`;
    const looked =
      state.text && this.next ? ` · ${count(Math.min(this.scanned, total))} of ${count(total)} searched` : '';
    this.found.textContent = this.rows.length || this.next ? found + looked : 'Nothing passes these filters.';
  }

  item(row) {
    const [run, stage, line] = row.place;
    const answers = (row.copied ? row.turns.slice(0, 1) : row.turns).map((turn, place) => [
      place > 0 && ' → ',
      h(
        'span',
        { class: turn.outcome === 'correct' ? 'right' : 'wrong' },
        turn.answer || turn.outcome.replaceAll('_', ' '),
      ),
    ]);
    const item = h(
      'a',
      { href: link({ in: run, stage, row: String(line) }), class: 'sample' },
      h(
        'span',
        { class: `way ${toneOf(row.kind)}`, title: row.kind },
        row.turns.map((turn) => (turn.outcome === 'correct' ? '✓' : '✗')),
      ),
      h('b', null, row.problem || 'no problem'),
      h(
        'span',
        { class: 'where' },
        this.runs.length > 1 && runDot(run, this.colours),
        row.step === null ? row.source.replace('evaluation · ', '') : `step ${row.step}`,
      ),
      h('small', { class: 'answers' }, answers, row.copied && h('em', null, ' copied')),
    );
    item.addEventListener('click', (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.select(row, false);
      if (matchMedia('(max-width: 60rem)').matches) this.detail.focus({ preventScroll: true });
    });
    row.element = item;
    return h('li', null, item);
  }

  // Opens a sample of the list; quietly where it only follows the keys.
  select({ place: [run, stage, row] }, quiet) {
    go({ in: run, stage, row: String(row) }, { quiet });
  }

  // One further down (or up) the list.
  async step(by) {
    const at = this.rows.findIndex((row) => isOpen(row.place));
    const row = this.rows[at < 0 ? 0 : at + by];
    if (row) this.select(row, true);
    if (at + by >= this.rows.length - 10) this.more();
  }

  // Shows which row is open; it is only scrolled to when it was opened, not when the list grew.
  mark(scroll) {
    for (const row of this.rows) {
      const open = isOpen(row.place);
      row.element.setAttribute('aria-current', String(open));
      if (open && scroll) row.element.scrollIntoView({ block: 'nearest' });
    }
  }

  async open() {
    this.element.classList.toggle('one', Boolean(state.row));
    const place = state.row ? [state.in ?? '', state.stage ?? '', state.row] : null;
    if (String(place) === this.shown) return;
    this.shown = String(place);
    this.mark(true);
    if (!place) {
      this.detail.replaceChildren(h('p', { class: 'empty' }, 'Choose a transcript; j and k go through the list.'));
      return;
    }
    try {
      const sample = await ask('sample', { run: place[0], stage: place[1], row: place[2] });
      if (this.shown === String(place)) this.detail.replaceChildren(...show(sample));
    } catch (error) {
      if (this.shown !== String(place)) return;
      this.shown = null; // it may be read yet: the next look at the server asks again
      redraw(this.detail, [back(), h('p', { class: 'empty' }, error.message)]);
      return;
    }
    this.detail.scrollTop = 0;
    highlight(this.detail, state.text);
  }
}

const isOpen = ([run, stage, row]) => state.in === run && state.stage === stage && state.row === String(row);

const toneOf = (kind) => ({ 'i->c': 'repaired', 'c->i': 'broken', 'c->c': 'kept', 'i->i': 'failed' })[kind] ?? '';
