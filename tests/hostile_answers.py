"""Answers and whole responses that are meant to hang, swell, crash or get out of a grader; none is right."""

ANSWERS = {
    'tower of powers': '9^{9^{9^{9^{9}}}}',
    'tower in brackets': '((((9^9)^9)^9)^9)^9',
    'tower as Python': '9**9**9**9',
    'large power': '2^{19999}',
    'powers of powers': '(((x+1)^{99}+1)^{99}+1)^{99}',
    'power of many': '(a+b+c+d+e+f+g+h)^{19999}',
    'exponentials': 'e^{e^{e^{e^{e}}}}',
    'factorials of factorials': '((10!)!)!',
    'large factorial': '100000000!',
    'many factorials': '9!!!!!!!!!!',
    'large binomial': '\\binom{1000000000}{500000000}',
    'digits': '1' * 100_000,
    'decimals': '0.' + '3' * 100_000,
    'large argument': '\\sin(10^{10^{10}})',
    'large hyperbolic': '\\cosh(10^9)',
    'brackets': '(' * 3000 + '1' + ')' * 3000,
    'open brackets': '(' * 3000,
    'braces': '{' * 3000 + '1' + '}' * 3000,
    'fractions in fractions': '\\frac{1}{' * 300 + '2' + '}' * 300,
    'roots in roots': '\\sqrt{' * 24 + '2' + '}' * 24,
    'root of large order': '\\sqrt[9^{9^9}]{2}',
    'root of order 0': '\\sqrt[0]{2}',
    'bars': '|' * 900,
    'signs': '-' * 990 + '7',
    'commas': ',' * 990,
    'items': ','.join(['1'] * 480),
    'alternatives': ', '.join(['\\pm 1'] * 120),
    'all signs': '\\pm ' * 200 + '1',
    'equations': 'x=' * 300,
    'subscripts': 'x_{' * 100 + '1' + '}' * 100,
    'matrices in matrices': '\\begin{pmatrix}' * 50 + '1' + '\\end{pmatrix}' * 50,
    'fonts in fonts': '\\text{' * 120 + 'a' + '}' * 120,
    'spaces': '1' + ' ' * 900 + '2',
    'periods': '0.\\overline{' + '3' * 900 + '}',
    'sum to 10^9': '\\sum_{k=1}^{1000000000} \\frac{1}{k^3}',
    'product to 10^9': '\\prod_{k=1}^{10^9} k',
    'integral': '\\int_0^{10^9} e^{x^2} dx',
    'division by 0': '\\frac{1}{0}',
    '0 to the 0': '0^0',
    'logarithm of 0': '\\ln 0',
    'Python import': '__import__("os").system("touch TRACE")',
    'Python open': 'open("TRACE", "w")',
    'Python eval': 'eval("open(\'TRACE\', \'w\')")',
    'Python lambda': '(lambda: open("TRACE", "w"))()',
    'Python classes': '().__class__.__bases__[0].__subclasses__()',
    'sympy': 'Symbol("x", __import__("os").system("touch TRACE"))',
    'LaTeX input': '\\input{/etc/passwd}',
    'LaTeX shell': '\\immediate\\write18{touch TRACE}',
    'LaTeX that defines itself': '\\def\\x{\\x\\x}\\x',
    'lone surrogate': '\ud800',
    'null': '7\x00',
    'direction marks': '\u202e' * 500 + '7',
}

RESPONSES = {
    'many boxes': '\\boxed{7}' * 100_000,
    'boxes in boxes': '\\boxed{' * 100_000,
    'closed boxes in boxes': '\\boxed{' * 50_000 + '}' * 50_000,
    'many final answers': 'final answer: \n' * 50_000,
    'final spaces': 'final answer' + ' ' * 200_000 + 'x',
    'spaced finals': ('final' + ' ' * 1000) * 500,
    'stars': 'final answer ' + '*' * 200_000 + 'x',
    'much hope': 'the final answer is 7' + '. ' * 100_000 + 'I hope it is',
    'many hashes': '#### ' * 100_000,
    'run of hashes': '#' * 500_000,
    'megabytes': 'x' * 5_000_000,
}

GOLDS = (
    '5', '\\frac{1}{2}', '2\\sqrt{3}', 'x^2+1', '1,2,3', '(1,2)', '\\begin{pmatrix}1\\\\2\\end{pmatrix}',
    '\\text{even}', '(-\\infty,2)\\cup(3,\\infty)', 'x=5', '1200_7', '30^\\circ', '25\\%', '\\int x dx',
    '\\sum_{k=1}^{n} k')


def responses() -> list[str]:
    """Every hostile response, with each answer in a box and on a final line."""
    forms = ('so \\boxed{%s}', 'The final answer is $%s$.')
    return [form % answer for answer in ANSWERS.values() for form in forms] + list(RESPONSES.values())
