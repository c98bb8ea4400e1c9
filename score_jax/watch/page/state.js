// What is looked at, kept in the address after '#', so that a link shows the same again and Back goes back.

const LISTS = ['run', 'label'];

export const state = {};
const listeners = [];

function read() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(state)) delete state[key];
  for (const key of new Set(parameters.keys())) state[key] = parameters.get(key);
  for (const key of LISTS) state[key] = parameters.getAll(key);
}

export function link(changes) {
  const parameters = new URLSearchParams();
  for (const [key, value] of Object.entries({ ...state, ...changes })) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== '') parameters.append(key, one);
    }
  }
  return '#' + parameters;
}

// `quiet` changes the address without a step to go back to.
export function go(changes, { quiet = false } = {}) {
  const address = link(changes);
  if (address === location.hash) return;
  history[quiet ? 'replaceState' : 'pushState'](null, '', address);
  read();
  listeners.forEach((listener) => listener());
}

export function onChange(listener) {
  listeners.push(listener);
}

addEventListener('popstate', () => {
  read();
  listeners.forEach((listener) => listener());
});
read();
