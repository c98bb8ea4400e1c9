"""Shows how a maths answer is graded: `python -m score_jax.rewards.explain GOLD ANSWER`.

ANSWER is an answer or a whole response: where it holds a box, a final answer or `####`, what stands there is compared.
"""

from __future__ import annotations

import argparse
import sys

from score_jax.jsonl import plain
from score_jax.rewards import maths
from score_jax.rewards.maths.clean import clean
from score_jax.rewards.maths.structure import Node, readings


def _tree(node: Node, indent: str = '  ') -> list[str]:
    detail = ' '.join(filter(None, (*node.detail, node.unit and f'unit {node.unit}')))
    lines = [f'{indent}{node.kind}{f" ({detail})" if detail else ""}: {node.text}']
    return lines + [line for item in node.items for line in _tree(item, indent + '  ')]


def explain(gold: str, response: str, form: str = 'any') -> str:
    """What was read, the forms compared, and why they are or are not equal; one point a line."""
    found = maths.read(response, form)
    answer = response if found is None else found
    lines = [f'read     {answer}' + ('' if found is not None else f'   (no form {form!r} in it: taken whole)')]
    for name, text in (('gold', gold), ('answer', answer)):
        lines.append(f'{name:8} {clean(text)}')
        if len(text) <= maths.LONGEST:
            lines += [line for node in readings(clean(text)) for line in _tree(node)]
    same, why = maths.equal(gold, answer)
    return '\n'.join([*lines, f'{"EQUAL" if same else "NOT EQUAL"}: {why}'])


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog='python -m score_jax.rewards.explain', description=__doc__.split('\n')[0])
    parser.add_argument('gold')
    parser.add_argument('answer', help='an answer, or a response with a box, a final answer or ####')
    parser.add_argument('--form', choices=maths.FORMS, default='any')
    args = parser.parse_args()
    print(plain(explain(args.gold, args.answer, args.form)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
