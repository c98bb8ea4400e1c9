// One transcript in full: the problem, every turn, what changed between them, and what the verifier made of it.

import { rawAddress } from './api.js';
import { compare } from './diff.js';
import { h, short } from './dom.js';
import { link } from './state.js';

export const CLOSED = { row: null, stage: null, in: null }; // the part of the address that names a sample

export const back = () => h('a', { class: 'back', href: link(CLOSED) }, '← all');

export function show(sample) {
  const [run, stage, row] = sample.place;
  const facts = [run, sample.source, sample.step !== null && `training step ${sample.step}`]
    .filter(Boolean)
    .join(' · ');
  const turns = sample.turns.map((turn) => ({ ...turn, marked: [{ text: turn.response.text, changed: false }] }));
  turns.forEach((turn, place) => {
    if (place === 0) return;
    const before = turns[place - 1];
    const found = compare(before.response.text, turn.response.text);
    turn.marked = found.after;
    turn.note =
      turn.response.text === before.response.text
        ? `the same text as turn ${place}`
        : `against turn ${place}: ${found.fresh} tokens new, ${found.gone} gone`;
    if (place === 1) before.marked = found.before;
  });
  return [
    h(
      'div',
      { class: 'bar head' },
      back(),
      h('p', { class: 'source' }, facts),
      h(
        'a',
        {
          href: link({
            text: sample.problem.text.slice(0, 200).split('\n')[0],
            label: [],
            source: null,
            upto: null,
            ...CLOSED,
          }),
        },
        'same problem',
      ),
      h('a', { href: rawAddress(sample.place), download: `${run}-${stage}-${row}.json` }, 'JSON'),
    ),
    h('div', { class: 'problem' }, h('h4', null, 'Problem'), h('pre', null, sample.problem.text)),
    h('div', { class: 'turns' }, turns.map(turnCard)),
    sample.instruction.text &&
      h(
        'div',
        { class: 'instruction' },
        h('h4', null, 'Instruction between the turns'),
        h('pre', null, sample.instruction.text),
      ),
  ].filter(Boolean);
}

function turnCard(turn, place) {
  const right = turn.outcome === 'correct';
  const facts = [
    turn.tokens !== null && `${short(turn.tokens)} tokens`,
    turn.reward !== null && `reward ${short(turn.reward)}`,
    turn.truncated && 'cut off at the limit',
    turn.note,
  ]
    .filter(Boolean)
    .join(' · ');
  return h(
    'div',
    { class: `turn turn${Math.min(place + 1, 2)}` },
    h(
      'h4',
      null,
      `Turn ${place + 1}`,
      h(
        'span',
        { class: `badge ${right ? 'right' : 'wrong'}` },
        `${right ? '✓' : '✗'} ${turn.outcome.replaceAll('_', ' ')}`,
      ),
    ),
    h(
      'pre',
      null,
      turn.response.text
        ? turn.marked.map(({ text, changed }) => (changed ? h(place === 0 ? 'del' : 'mark', null, text) : text))
        : h('i', null, 'empty'),
    ),
    h(
      'p',
      { class: 'facts' },
      turn.read === null ? 'verifier read no answer' : ['verifier read ', h('code', null, turn.read.text)],
    ),
    facts && h('p', { class: 'facts' }, facts),
  );
}

// Shows where the text that is searched for stands, where the browser can do so without changing the page.
export function highlight(element, text) {
  if (!window.Highlight) return;
  CSS.highlights.delete('found');
  if (!text) return;
  const found = new Highlight();
  const walk = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const small = walk.currentNode.data.toLowerCase();
    if (small.length !== walk.currentNode.length) continue; // places would be off, as after 'İ'
    for (
      let at = small.indexOf(text.toLowerCase());
      at >= 0 && found.size < 500;
      at = small.indexOf(text.toLowerCase(), at + 1)
    ) {
      const range = new Range();
      range.setStart(walk.currentNode, at);
      range.setEnd(walk.currentNode, Math.min(at + text.length, walk.currentNode.length));
      found.add(range);
    }
  }
  CSS.highlights.set('found', found);
}
