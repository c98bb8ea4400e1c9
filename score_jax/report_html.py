"""The page of a report: plain values in, one HTML string out, with no script and nothing from outside.

Whatever a model or a file may have written goes through `text`, which escapes it and makes control characters visible.
"""

import base64
import difflib
import html
import json
import math
import re

from score_jax import plots, plots_evaluation
from score_jax.jsonl import number, plain
from score_jax.plot_style import row_label, temperature_label, turn_keys
from score_jax.report_style import STYLE

KINDS = {  # in the order of the page
    'i->c': ('wrong → correct', 'The last attempt repaired the first. Did it find the mistake, or start anew?'),
    'c->i': ('correct → wrong', 'The last attempt broke a right answer. These cancel repairs one for one.'),
    'c->c': ('correct → correct', 'Right first and last. Good correction leaves a right answer alone.'),
    'i->i': ('wrong → wrong', 'Wrong first and last. Do later attempts try something new, or copy?'),
}
COLUMNS = (  # of two turns: key in results.json, heading, whether it is a signed difference
    ('t1', 'accuracy@t1', False), ('t2', 'accuracy@t2', False), ('delta', 'delta', True),
    ('i_to_c', 'i→c', False), ('c_to_i', 'c→i', False), ('changed', 'changed', False),
)
LONGEST = 4000  # characters of one text that are shown; the middle of a longer one is left out


def page(*, name: str, findings: list[tuple[str, str]], results: list[dict], progress: list[str],
         figures: dict[str, bytes], measures: str, transcripts: list[dict], configs: dict[str, object]) -> str:
    """The whole page. `figures` are PNG bytes by name of chart, `measures` is HTML."""
    charts = ''.join(figure(chart.title, chart.caption, figures[chart.name])
                     for chart in plots.CHARTS if chart.name in figures)
    evaluation = ''.join(figure(chart.title, chart.caption, figures[chart.name])
                         for chart in plots_evaluation.CHARTS[:1] if chart.name in figures)
    sections = (
        ('results', 'Results', _results(results) + evaluation),
        ('measures', 'A closer look', measures),
        ('training', 'Training', _training(progress, charts)),
        ('transcripts', 'Transcripts', _transcripts(transcripts)),
        ('configs', 'Configuration', _configs(configs)),
    )
    links = ''.join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = ''.join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    said = ''.join(f'<li class="{tone}">{text(sentence)}</li>' for tone, sentence in findings)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{text(name)} · self-correction report</title>
<style>{STYLE}</style></head>
<body><header><p class="kicker">Self-correction report</p><h1>{text(name)}</h1>
<nav>{links}</nav>{f'<ul class="findings">{said}</ul>' if said else ''}</header>
<main>{body}</main></body></html>
"""


# --- text


def text(value: object) -> str:
    """`value` for the page: HTML-escaped, control and formatting characters made visible."""
    return html.escape(plain(value))


def shorten(value: object) -> str:
    """`value` as a string; of a very long one the beginning and the end, where the answer is."""
    value = '' if value is None else str(value)
    if len(value) <= LONGEST:
        return value
    head, tail = LONGEST * 2 // 3, LONGEST // 3
    return f'{value[:head]}\n[… {len(value) - head - tail} characters left out …]\n{value[-tail:]}'


def marked(first: str, second: str) -> tuple[str, int, int]:
    """`second` with the tokens that differ from `first` marked, how many those are, and how many of `first` are gone.

    Tokens are what whitespace separates.
    """
    before = first.split()
    pieces = re.split(r'(\s+)', second)  # token, gap, token, gap, ..., token
    after = pieces[::2]
    # Popular tokens are only ignored where an exact comparison would take seconds.
    matcher = difflib.SequenceMatcher(None, before, [token for token in after if token],
                                      autojunk=len(before) * len(after) > 1_000_000)
    shift = 0 if after[0] else 1  # leading whitespace makes an empty first token
    changed, gone = set(), 0
    for operation, left, right, start, end in matcher.get_opcodes():
        if operation != 'equal':
            changed.update(range(start + shift, end + shift))
            gone += right - left
    out, opened = [], False
    for place, piece in enumerate(pieces):
        # A gap is inside a mark when the tokens on both sides are.
        inside = bool(piece) and all(token in changed for token in {place // 2, (place + 1) // 2})
        if inside != opened:
            out.append('<mark>' if inside else '</mark>')
            opened = inside
        out.append(text(piece))
    return ''.join(out) + ('</mark>' if opened else ''), len(changed), gone


def percent(value: float) -> str:
    """With one digit and a true minus; a dash for what is no number."""
    return f'{value:.1f}'.replace('-', '−') if math.isfinite(value) else '–'


def signed(value: float) -> str:
    """With its sign, a true minus, and no sign on zero."""
    value = round(value, 1)
    return '–' if not math.isfinite(value) else f'{value:+.1f}'.replace('-', '−') if value else '0.0'


# --- results


def _results(results: list[dict]) -> str:
    if not results:
        return '<p class="empty">No evaluation yet: there is no readable results.json.</p>'
    groups: dict[str, list[dict]] = {}
    for row in results:
        groups.setdefault(temperature_label(row), []).append(row)
    parts = []
    for temperature, rows in groups.items():
        labelled = [(row_label(row, rows), row) for row in rows]
        parts.append(f'<h3>{text(temperature[0].upper() + temperature[1:])}</h3>{_table("method", labelled)}')
        for label, row in labelled:
            by = row.get('by')
            for kind, figures in by.items() if isinstance(by, dict) else ():
                if isinstance(figures, dict):
                    named = [(name, group) for name, group in figures.items() if isinstance(group, dict)]
                    parts.append(
                        f'<details><summary>{text(label)} by {text(kind)}</summary>{_table(kind, named)}</details>')
    return ''.join(parts) + (
        '<p class="caption">In percent, with the 95 % interval below. accuracy@tN: right at attempt N. delta: the last '
        'less the first, in points; above zero is self-correction, and an interval that leaves out zero makes it '
        'credible, as does a small p (McNemar’s test). i→c: wrong first, right in the end; c→i: right first, wrong in '
        'the end; both of all problems, so delta = i→c − c→i. changed: the last answer differs from the first; near '
        'zero is copying.</p>')


def columns_of(rows: list[dict]) -> tuple[tuple[str, str, bool], ...]:
    """`COLUMNS`, with the turns beyond the second where any row has them."""
    later = tuple((key, f'accuracy@{key}', False) for key in turn_keys(rows)[2:])
    return COLUMNS[:2] + later + COLUMNS[2:]


def _table(head: str, rows: list[tuple[str, dict]]) -> str:
    """A line for each (label, figures)."""
    columns = columns_of([row for _, row in rows])
    heads = ''.join(f'<th scope=col>{heading}</th>' for _, heading, _ in columns)
    lines = ''.join(f'<tr><th scope=row>{text(label)}{_count(row)}</th>'
                    + ''.join(interval_cell(row, *column) for column in columns) + '</tr>' for label, row in rows)
    return (f'<table><thead><tr><th scope=col>{text(head)}</th>{heads}</tr></thead>'
            f'<tbody>{lines}</tbody></table>')


def _count(row: dict) -> str:
    count, each, dropped = (number(row, key) for key in ('n', 'samples_per_problem', 'dropped'))
    said = [f'n = {count:,.0f}'] if math.isfinite(count) else []
    said += [f'{each:g} samples each'] if each > 1 else []
    said += [f'{dropped:,.0f} not graded'] if dropped > 0 else []
    return f'<small>{", ".join(said)}</small>' if said else ''


def interval_cell(row: dict, key: str, heading: str, is_difference: bool) -> str:
    """A figure in percent, its interval below, and where the row has one the p-value of its test."""
    show = signed if is_difference else percent
    low, value, high = (100 * number(row, name) for name in (f'{key}_low', key, f'{key}_high'))
    tone = ''
    if is_difference:
        tone = ' class="better"' if low > 0 else ' class="worse"' if high < 0 else ''
    joint = ' to ' if is_difference else '–'
    interval = f'<small>{show(low)}{joint}{show(high)}</small>' if math.isfinite(low + high) else ''
    p = number(row, f'{key}_p')
    test = f'<small>p {"&lt; 0.001" if p < 0.001 else f"= {p:.3f}"}</small>' if math.isfinite(p) else ''
    return f'<td data-label="{heading}"><b{tone}>{show(value)}</b>{interval}{test}</td>'


# --- charts


def _training(progress: list[str], charts: str) -> str:
    if not charts:
        return '<p class="empty">No curves yet: no stage has a readable metrics.jsonl.</p>'
    steps = ''.join(f'<li>{text(line)}</li>' for line in progress)
    return (f'<ul class="steps">{steps}</ul><p class="caption">Stages stand side by side in the order they were '
            'trained. Where there are many points, the line is a moving average over a twentieth of them and the '
            'points behind it are the logged values. A dashed line is the level of the base in the evaluation.</p>'
            f'<div class="charts">{charts}</div>')


def figure(title: str, caption: str, png: bytes, below: str = '') -> str:
    """A chart, which the style sheet turns dark on a dark page; `below` is HTML that follows its caption."""
    data = base64.b64encode(png).decode()
    return (f'<figure><h3>{title}</h3><img src="data:image/png;base64,{data}" alt="Chart: {title}">'
            f'<figcaption>{caption}</figcaption>{below}</figure>')


# --- transcripts


def _transcripts(transcripts: list[dict]) -> str:
    if not transcripts:
        return '<p class="empty">No transcripts yet: there is no readable samples.jsonl.</p>'
    parts = ['<p class="caption">Picked to show every kind, so their shares here say nothing about how often each '
             'happens. In later responses <mark>marked</mark> tokens differ from the one before.</p>']
    for kind, (title, caption) in KINDS.items():
        samples = [sample for sample in transcripts if sample['kind'] == kind]
        if samples:
            parts.append(f'<h3 class="kind">{title} <span>{kind.replace("->", "→")}</span></h3>'
                         f'<p class="caption">{caption}</p>{"".join(map(_transcript, samples))}')
    return ''.join(parts)


def _transcript(sample: dict) -> str:
    turns = sample['turns']
    first = shorten(turns[0].get('response'))
    parts = [f'<div class="problem"><h4>Problem</h4><pre>{text(shorten(sample.get("problem")))}</pre></div>']
    for place, turn in enumerate(turns):
        response = shorten(turn.get('response'))
        shown, note = text(response), ''
        if place > 0:
            if place == 1 and sample.get('feedback'):
                parts.append(f'<div class="instruction"><h4>Feedback, not graded</h4><pre>'
                             f'{text(shorten(sample["feedback"]))}</pre></div>')
            if place == 1 and sample.get('instruction'):
                parts.append(f'<div class="instruction"><h4>Instruction</h4><pre>'
                             f'{text(shorten(sample["instruction"]))}</pre></div>')
            shown, new, gone = marked(first, response)
            note = f'against turn {place}: {new} tokens new, {gone} gone'
            if response == first:
                note = f'the same text as turn {place}'
        first = response
        parts.append(_turn(place + 1, turn, shown, note))
    return f'<article><p class="source">{text(_source(sample))}</p>{"".join(parts)}</article>'


def _turn(place: int, turn: dict, shown: str, note: str) -> str:
    outcome = str(turn.get('outcome') or 'not graded')
    right = outcome == 'correct'
    badge = f'<span class="badge {"right" if right else "wrong"}">{"✓" if right else "✗"} ' \
            f'{text(outcome.replace("_", " "))}</span>'
    read = turn.get('read')
    read = 'read no answer' if read is None else f'read: <code>{text(shorten(read))}</code>'
    tokens = number(turn, 'tokens')
    facts = [f'verifier {read}']
    facts += [f'{tokens:g} tokens'] if math.isfinite(tokens) else []
    facts += ['cut off at the limit'] if turn.get('truncated') is True else []
    facts += [note] if note else []
    return (f'<div class="turn turn{min(place, 4)}"><h4>Turn {place} {badge}</h4>'
            f'<pre>{shown or "<i>empty</i>"}</pre><p class="facts">{" · ".join(facts)}</p></div>')


def _source(sample: dict) -> str:
    parts = [str(sample.get('method', sample.get('stage', '?')))]
    if math.isfinite(number(sample, 'temperature')):
        parts.append(temperature_label(sample))
    if math.isfinite(number(sample, 'step')):
        parts.append(f"training step {number(sample, 'step'):g}")
    return ' · '.join(parts)


# --- configuration


def _configs(configs: dict[str, object]) -> str:
    if not configs:
        return '<p class="empty">No readable config.json.</p>'
    shown = {stage: json.dumps(config, indent=2, ensure_ascii=False) for stage, config in configs.items()}
    return ''.join(f'<details><summary>{text(stage)}</summary><pre>{text(config)}</pre></details>'
                   for stage, config in shown.items())
