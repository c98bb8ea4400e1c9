// What differs between two texts, in tokens that whitespace separates: Myers' O(ND) comparison.

const EDITS_MAX = 1500; // beyond it everything between the common ends counts as changed

// [{text, changed}] for both texts, whole texts again when joined. A gap is changed when the tokens on both sides are.
export function compare(before, after) {
  const left = before.split(/(\s+)/);
  const right = after.split(/(\s+)/);
  const a = left.filter((_, place) => place % 2 === 0);
  const b = right.filter((_, place) => place % 2 === 0);
  const [gone, fresh] = edits(a, b);
  return { before: pieces(left, gone), after: pieces(right, fresh), gone: size(gone, a), fresh: size(fresh, b) };
}

const size = (changed, tokens) => tokens.filter((token, place) => token && changed[place]).length;

function pieces(parts, changed) {
  const out = [];
  parts.forEach((text, place) => {
    const inside = place % 2 === 0 ? changed[place / 2] : changed[(place - 1) / 2] && changed[(place + 1) / 2];
    if (text === '') return;
    if (out.length && out.at(-1).changed === Boolean(inside)) out.at(-1).text += text;
    else out.push({ text, changed: Boolean(inside) });
  });
  return out;
}

// Which tokens of `a` and of `b` are not in both.
function edits(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const gone = new Array(a.length).fill(false).fill(true, start, a.length - end);
  const fresh = new Array(b.length).fill(false).fill(true, start, b.length - end);
  for (const [x, y] of common(a.slice(start, a.length - end), b.slice(start, b.length - end))) {
    gone[start + x] = fresh[start + y] = false;
  }
  return [gone, fresh];
}

// Places [x, y] of a longest common subsequence; none where it takes more than EDITS_MAX edits.
function common(a, b) {
  const furthest = new Map([[1, 0]]);
  const steps = [];
  for (let d = 0; d <= Math.min(a.length + b.length, EDITS_MAX); d++) {
    const row = new Int32Array(2 * d + 1);
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && (furthest.get(k - 1) ?? -1) < (furthest.get(k + 1) ?? -1));
      let x = down ? (furthest.get(k + 1) ?? 0) : furthest.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      furthest.set(k, x);
      row[k + d] = x;
      if (x >= a.length && x - k >= b.length) {
        steps.push(row);
        return walkBack(steps, a.length, b.length);
      }
    }
    steps.push(row);
  }
  return [];
}

function walkBack(steps, x, y) {
  const pairs = [];
  for (let d = steps.length - 1; d >= 0; d--) {
    const k = x - y;
    const at = (line) => (d > 0 && Math.abs(line) <= d - 1 ? steps[d - 1][line + d - 1] : -1);
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const startX = d === 0 ? 0 : down ? at(k + 1) : at(k - 1) + 1;
    while (x > startX && y > startX - k) pairs.push([--x, --y]);
    [x, y] = d === 0 ? [0, 0] : down ? [startX, startX - k - 1] : [startX - 1, startX - k];
  }
  return pairs;
}
