"""Shows a trained model at work: `python launch/try.py --workdir=runs/demo "2 3 5 make 17"`.

Every attempt is written as it is sampled. In a terminal Enter asks for one more, and a line of text is the next
problem. Without a problem those of the test split are shown, one after the other.
"""

import secrets
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging
from rich.console import Console
from rich.text import Text

from score_jax.errors import UserError
from score_jax.jsonl import plain

WORKDIR = flags.DEFINE_string(
    'workdir', 'runs/score',
    'What launch/main.py or launch/convert.py wrote, or the directory of a Hugging Face model; or the address of such.')
STAGE = flags.DEFINE_string('stage', None, 'The stage whose checkpoint is tried; by default the one saved last.')
STEP = flags.DEFINE_integer('step', None, 'The step of its checkpoint; by default the latest.', lower_bound=0)
TEMPERATURE = flags.DEFINE_float('temperature', None, '0 is greedy; by default that of training.', lower_bound=0)
MAX_TOKENS = flags.DEFINE_integer('max_tokens', None, 'Of a response; by default as in training.', lower_bound=1)
ATTEMPTS = flags.DEFINE_integer('attempts', 2, 'Attempts at each problem, before you are asked.', lower_bound=1)
PROBLEMS = flags.DEFINE_integer('problems', 3, 'Problems of the test split, where nobody can be asked.', lower_bound=1)
SEED = flags.DEFINE_integer(
    'seed', None, 'Of problems and noise; by default another one each time.', lower_bound=0, upper_bound=2**31 - 1)
DATA_DIR = flags.DEFINE_string('data_dir', '', 'config.task.data_dir, for tasks that have one.')

_STYLES = {'correct': 'bold green', 'wrong': 'red'}
_LABEL = 13  # columns
_CONSOLE = Console(highlight=False)


def say(text: str, style: str = '', end: str = '\n') -> None:
    """Writes text as it is: nothing in it is markup, and nothing is wrapped."""
    _CONSOLE.print(Text(text, style), end=end, soft_wrap=True)


def label(text: str) -> None:
    """What stands before a line."""
    say(f'{text:<{_LABEL}}', 'bold', end='')


def attempt(conversation) -> None:
    """One more attempt, with its verdict beneath."""
    label(f'attempt {conversation.attempts + 1}')
    verdict = conversation.attempt(lambda text: say(text, end=''))
    say('')
    if verdict:
        say(f'{"":{_LABEL}}{verdict.outcome}', _STYLES.get(verdict.outcome, 'yellow'), end='')
        say(f'   the verifier read {plain(verdict.read)}' if verdict.read else '', 'dim')


def ask(again: bool = True) -> str:
    """A line of the person; 'q' at the end of input."""
    say(f'\n{"Enter: one more attempt   " if again else ""}n: next problem   q: end   or write a problem', 'dim')
    try:
        return input('> ').strip() or ('' if again else 'n')
    except EOFError:
        say('')
        return 'q'


def show(conversation, prompt: str, instruction: str, asks: bool) -> str:
    """Attempts until there are enough; returns what is asked for next, 'n' where nobody can be asked."""
    label('problem')
    say(plain(prompt).strip())
    while True:
        attempt(conversation)
        if conversation.attempts >= ATTEMPTS.value:
            asked = ask() if asks else 'n'
            if asked:
                return asked
        label('instruction')
        say(plain(instruction).strip(), 'dim')


def run(written: str | None) -> None:
    """Shows the problem that was written, and what is asked for after it; those of the test split where none was."""
    from score_jax import compilation, converse, mirror  # after the flags, so that a mistake in them answers at once
    compilation.use_cublas()
    compilation.keep()
    policy = converse.load(
        mirror.look(WORKDIR.value, step=STEP.value), STAGE.value, step=STEP.value, temperature=TEMPERATURE.value,
        max_tokens=MAX_TOKENS.value, data_dir=DATA_DIR.value)
    asks = sys.stdin.isatty() and _CONSOLE.is_terminal
    seed = secrets.randbelow(2**31) if SEED.value is None else SEED.value
    say(f'{policy.name}, temperature {policy.sampling.temperature:g}, seed {seed}', 'dim', end='\n\n')
    asked, shown = 'n' if written is None else written, 0
    while asked != 'q':
        try:
            if asked == 'n':
                problem, graded = policy.task.problems('test', 1, seed=seed, step=shown)[0], True
                shown += 1
            else:
                problem, graded = converse.problem_from(policy, asked)
        except UserError as error:
            if not asks:
                raise
            say(str(error), 'yellow')
            asked = ask(again=False)
            continue
        conversation = converse.Conversation(policy, problem, graded=graded, seed=seed)
        asked = show(conversation, policy.task.prompt(problem), policy.task.instruction, asks)
        if not asks and (written is not None or shown == PROBLEMS.value):
            return
        say('')


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        run(' '.join(argv[1:]) if argv[1:] else None)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print()
        sys.exit(130)


if __name__ == '__main__':
    app.run(main)
