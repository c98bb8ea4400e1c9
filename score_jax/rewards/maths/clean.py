"""One spelling for what LaTeX and plain text spell in many ways: spaces, fractions, thousands, fonts, words, signs."""

from __future__ import annotations

import functools
import re

_UNICODE = {
    '−': '-', '–': '-', '×': '\\times ', '·': '\\cdot ', '⋅': '\\cdot ', '÷': '\\div ', '√': '\\sqrt ', 'π': '\\pi ',
    '∞': '\\infty ', '°': '^\\circ ', '≤': '\\le ', '≥': '\\ge ', '≠': '\\ne ', '∪': '\\cup ', '∈': '\\in ',
    '±': '\\pm ', '≈': '\\approx ', 'θ': '\\theta ', '∅': '\\emptyset ', '⟨': '\\langle ', '⟩': '\\rangle ',
    '²': '^2', '³': '^3', '½': '\\frac{1}{2}', '¼': '\\frac{1}{4}', '¾': '\\frac{3}{4}', '\xa0': ' ', '\u2009': ' ',
    '€': '\\text{euro}', '£': '\\text{pound}'}
_NAMES = {
    'dfrac': 'frac', 'tfrac': 'frac', 'cfrac': 'frac', 'leq': 'le', 'leqslant': 'le', 'geq': 'ge', 'geqslant': 'ge',
    'neq': 'ne', 'lt': '<', 'gt': '>', 'colon': ':', 'lbrace': '\\{', 'rbrace': '\\}', 'varnothing': 'emptyset',
    'lvert': '|', 'rvert': '|', 'vert': '|', 'mid': '|', 'ast': '*', 'degree': '^\\circ', 'percent': '%',
    'bar': 'overline', 'textdollar': '\\$', 'rightarrow': 'to'}
_NOTHING = {
    'left', 'right', 'big', 'Big', 'bigg', 'Bigg', 'bigl', 'bigr', 'Bigl', 'Bigr', 'displaystyle', 'textstyle',
    'limits', 'quad', 'qquad', 'enspace', 'thinspace'}
_FONTS = 'text|mbox|textbf|textit|textrm|textnormal|emph|mathrm|mathbf|mathit|mathsf|operatorname'
_FONT = re.compile(r'\\(?:%s)\s*\{([^{}]*)\}' % _FONTS)
_COMMAND = re.compile(r'\\\\|\\([a-zA-Z]+)\s?|\\[,;:! ]|~')
_THOUSANDS = re.compile(r'(?<=\d)(?:,\s*\\!|\{,\}(?:\\!)?|\\[,! ])(?=\d{3}(?!\d))')
_REPEATING = re.compile(r'(\d*)\.(\d*)\\overline\s*\{(\d+)\}')
_WORDS = re.compile(
    r'(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|infinity|infty|theta)(?![A-Za-z])')
_PLAIN_MIXED = re.compile(r'(?<![\d./^_,}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d./^])')
_AND = re.compile(r'\s*,?\s*\b(?:and|or)\b\s*')


@functools.lru_cache(4096)
def clean(text: str) -> str:
    """`text` in one spelling; words are in `\\text{...}` or stand as they are, and single spaces stay."""
    text = ''.join(_UNICODE.get(character, character) for character in ' '.join(text.split()))
    text = re.sub(r'(?<!\\)(?:\$|\\[()\[\]])', ' ', text)
    text = re.sub(r'\\\\\[[\d.]+[a-z]{2}\]', r'\\\\', text)  # the space after a row of a matrix
    text = _THOUSANDS.sub('', text)
    text = re.sub(r'\\(?:hspace|phantom)\*?\s*\{[^{}]*\}', ' ', text)
    text = _COMMAND.sub(_command, text)
    text = _FONT.sub(_words, text)
    text = _REPEATING.sub(_repeating, text)
    text = re.sub(r'\\frac ?(\d) ?(\d)', r'\\frac{\1}{\2}', text)
    text = re.sub(r'(?<=\d)\s*\b([ap])\.?m\.?$', r'\\text{\1.m.}', text, flags=re.IGNORECASE)
    text = text.replace('^{\\circ}', '^\\circ').replace('\\%', '%').replace('**', '^')
    for ascii_sign, command in (('<=', '\\le '), ('>=', '\\ge '), ('!=', '\\ne ')):
        text = text.replace(ascii_sign, command)
    text = ''.join(
        part if part.startswith('\\text{') else _AND.sub(',', _WORDS.sub(_function, part)) if part.strip() else part
        for part in re.split(r'(\\text\{[^{}]*\})', text))
    text = _PLAIN_MIXED.sub(r'\1\\frac{\2}{\3}', text)
    text = re.sub(r'\s+', ' ', text).strip(' ,;')
    text = text.rstrip('. ')
    return '(-\\infty,\\infty)' if compact(text) == '\\mathbb{R}' else text


def compact(text: str) -> str:
    """Without spaces, but between digits: what two spellings of the same formula agree in."""
    return re.sub(r'(?<!\d) | (?!\d)', '', text)


def _command(match: re.Match) -> str:
    name = match[1]
    if name is None:
        return match[0] if match[0] == '\\\\' else ' '
    if name in _NOTHING:
        return ''
    new = _NAMES.get(name, name)
    return new if not new[0].isalpha() else f'\\{new} '


def _words(match: re.Match) -> str:
    """Words in a font: formulas and single letters are let out, lists are parted, what is left is `\\text{...}`."""
    content = match[1]
    if re.fullmatch(r'(?:arc)?(?:sin|cos|tan)|sec|csc|cot|log|ln', content.strip()):
        return f'\\{content.strip()} '
    parts = _AND.sub(',', content).split(',') if _AND.search(content) or ',' in content else [content]
    return ','.join(_part(part) for part in parts)


def _part(words: str) -> str:
    if re.fullmatch(r'\s*\(?[A-Za-z]\)?\s*|[^A-Za-z]*|[A-Z0-9]*\d[A-Z0-9]*', words):
        return words
    number, noun = re.fullmatch(r'\s*(\d[\d.]*\s)?(.*?)\s*', words, re.DOTALL).groups()
    return f'{number or ""}\\text{{{noun}}}'


def _function(match: re.Match) -> str:
    return '\\infty ' if match[1] == 'infinity' else f'\\{match[1]} '


def _repeating(match: re.Match) -> str:
    """0.1\\overline{6} is (16 - 1) / 90."""
    whole, fixed, period = match.groups()
    if len(match[0]) > 60:
        return match[0]
    above = int((whole + fixed + period) or 0) - int((whole + fixed) or 0)
    return f'(\\frac{{{above}}}{{{10 ** len(fixed) * (10 ** len(period) - 1)}}})'
