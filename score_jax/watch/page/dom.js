// Elements from plain values. Strings only ever become text nodes and attributes named in this code, so nothing that
// was read from a file can become markup.

const SVG = 'http://www.w3.org/2000/svg';

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export const h = (name, attributes, ...children) => build(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => build(document.createElementNS(SVG, name), attributes, children);

// Puts `children` into `element` and leaves the keyboard's focus where it was, in the element that is called the same.
export function redraw(element, children) {
  const called = (one) => one.id || one.getAttribute('aria-label') || one.textContent.replace(/ [↑↓]$/, '');
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  const place = focused?.selectionStart;
  element.replaceChildren(...children);
  if (!focused || focused === element) return;
  const again = [...element.querySelectorAll('a, button, input, select, summary')];
  const same = again.find((one) => one.tagName === focused.tagName && called(one) === called(focused));
  same?.focus({ preventScroll: true });
  if (place !== undefined && place !== null) same?.setSelectionRange(place, place);
}

export const percent = (value) => (Number.isFinite(value) ? (100 * value).toFixed(1).replace('-', '−') : '–');

// With its sign, a true minus, and no sign on zero.
export function signed(value) {
  if (!Number.isFinite(value)) return '–';
  const text = (100 * value).toFixed(1);
  return Number(text) === 0 ? '0.0' : (value > 0 ? '+' : '') + text.replace('-', '−');
}

// Four significant digits at most, no trailing zeros.
export function short(value) {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  const text =
    size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace('-', '−');
}

export const count = (value) => value.toLocaleString('en');

export function ago(seconds) {
  if (seconds < 90) return 'just now';
  const [size, unit] = [
    [86400, 'day'],
    [3600, 'hour'],
    [60, 'minute'],
  ].find(([size]) => seconds >= 1.5 * size) ?? [60, 'minute'];
  const number = Math.round(seconds / size);
  return `${number} ${unit}${number === 1 ? '' : 's'} ago`;
}
