"""The style sheet of a report: the colours of the charts, light and dark, and a layout that folds for phones."""

from score_jax import plot_style


def _variables(theme: dict[str, str]) -> str:
    return ''.join(f'--{key}:{value};' for key, value in theme.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(plot_style.LIGHT)} --page:#f5f6f8; --soft:#f5f6f8; --mark:#ffe2c7; }}
@media (prefers-color-scheme: dark) {{
  :root {{ {_variables(plot_style.DARK)} --page:#111419; --soft:#20252d; --mark:#5a3a1e; }}
  figure img {{ filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }}  /* its white is the card's face */
}}
""" + """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 66rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial,
    sans-serif; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 3.25rem 0 1rem; font-size: 1.4rem; letter-spacing: -.01em; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
h4 { margin: 0 0 .3rem; font-size: .8rem; font-weight: 600; color: var(--muted); }
p { margin: .5rem 0; }
.kicker { margin: 0 0 .25rem; color: var(--muted); font-size: .9rem; }
nav { margin: .75rem 0 1.25rem; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .9rem; }
a { color: var(--turn1); text-underline-offset: .2em; }
.caption, figcaption, .empty { color: var(--muted); font-size: .875rem; line-height: 1.5; max-width: 48rem; }
.findings { list-style: none; margin: 0; padding: 1rem 1.25rem; background: var(--face); border: 1px solid var(--grid);
  border-radius: 10px; }
.findings li { padding-left: 1.5rem; position: relative; overflow-wrap: anywhere; }
.findings li + li { margin-top: .4rem; }
.findings li::before { content: "·"; position: absolute; left: .2rem; font-weight: 700; color: var(--muted); }
.findings .good::before { content: "✓"; left: 0; color: var(--better); }
.findings .bad::before { content: "!"; left: .2rem; color: var(--worse); }
.steps { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1.5rem; font-size: .9rem; }
table { width: 100%; border-collapse: separate; background: var(--face); border: 1px solid var(--grid);
  border-radius: 10px; border-spacing: 0; font-variant-numeric: tabular-nums; }
th, td { padding: .6rem .9rem; text-align: right; vertical-align: top; }
tr > :first-child { text-align: left; overflow-wrap: anywhere; }
thead th { font-size: .8rem; font-weight: 600; color: var(--muted); }
tbody td, tbody th { border-top: 1px solid var(--grid); }
th small, td small { display: block; font-weight: 400; color: var(--muted); font-size: .78rem; white-space: nowrap; }
td b { font-weight: 600; } .better { color: var(--better); } .worse { color: var(--worse); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem;
  margin-top: 1rem; }
figure { margin: 0; padding: 1rem 1.1rem; background: var(--face); border: 1px solid var(--grid); border-radius: 10px; }
figure h3 { margin: 0 0 .5rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .6rem; }
figure details { border: 0; } figure summary { padding: .3rem 0; font-size: .875rem; }
.wide { overflow-x: auto; } .wide tr > :first-child { white-space: nowrap; }
figure table { font-size: .85rem; } figure th, figure td { padding: .35rem .6rem; }
#results figure { margin-top: 1.5rem; display: grid; grid-template-columns: minmax(0, 36rem) minmax(0, 1fr);
  gap: 0 2rem; }
#results figure h3 { grid-column: 1 / -1; }
.kind { margin-top: 2.25rem; font-size: 1.1rem; } .kind span { color: var(--muted); font-weight: 400; }
article { margin: .9rem 0; padding: 1rem 1.1rem; background: var(--face); border: 1px solid var(--grid);
  border-radius: 10px; display: grid; gap: .8rem; }
article p { margin: 0; } .source, .facts { color: var(--muted); font-size: .8rem; overflow-wrap: anywhere; }
pre, code { font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 26rem; overflow-y: auto; }
code { font-size: .8rem; color: var(--ink); }
.instruction pre { color: var(--muted); font-size: .8rem; }
.turn { padding: .7rem .9rem; background: var(--soft); border-left: 3px solid var(--turn1);
  border-radius: 0 6px 6px 0; }
.turn2 { border-color: var(--turn2); } .turn3 { border-color: var(--turn3); } .turn4 { border-color: var(--turn4); }
.turn h4 { color: var(--turn1); } .turn2 h4 { color: var(--turn2); } .turn3 h4 { color: var(--turn3); }
.turn4 h4 { color: var(--turn4); }
.turn .facts { margin-top: .4rem; }
.badge { margin-left: .4rem; padding: .05rem .5rem; border: 1px solid currentColor; border-radius: 1rem;
  font-size: .75rem; }
.right { color: var(--better); } .wrong { color: var(--worse); }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 .1em; text-decoration: underline;
  text-decoration-color: var(--turn2); text-underline-offset: .2em; }
details { margin: .5rem 0; background: var(--face); border: 1px solid var(--grid); border-radius: 10px; }
summary { padding: .7rem 1.1rem; cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
details pre { padding: 0 1.1rem 1rem; max-height: none; }
@media (max-width: 44rem) {
  body { padding: 1.5rem .9rem 3rem; } h1 { font-size: 1.6rem; }
  thead { display: none; } table, tbody, tr, td, tbody th { display: block; }
  tbody tr { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem .5rem; padding: .8rem .9rem; }
  tbody tr + tr { border-top: 1px solid var(--grid); } tbody th { grid-column: 1 / -1; }
  tbody th small { display: inline; margin-left: .6rem; }
  tbody th, tbody td { padding: 0; border: 0; text-align: left; } #results figure { display: block; }
  td::before { content: attr(data-label); display: block; font-size: .75rem; color: var(--muted); }
  figure { padding: .8rem; } article { padding: .9rem; }
}
@media print { body { background: none; } pre { max-height: none; } article, figure { break-inside: avoid; } }
"""
