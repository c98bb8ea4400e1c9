"""Grades programs: the tests run here, on the trusted side; the program runs in the sandbox and only answers calls.

    assert f([1, 2]) == 3        f([1, 2]) is a request to the sandbox; its answer is data; == happens here
    check(candidate)             what `candidate` is given becomes such a request as well

Equality is what the data sets mean by it: Python's `==` between plain built-in values, where 1, 1.0 and True are equal.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib
import logging
import random
import sys
import time
import types
from collections.abc import Callable, Mapping

from score_jax.errors import UserError
from score_jax.rewards.outcome import Outcome, Verdict
from score_jax.rewards.program import extract
from score_jax.rewards.sandbox import Failure, Limits, SandboxError, Session, Source, active

_TRIES = 2  # a sandbox that fails gets a second chance
_CANDIDATE = '_candidate'  # what `check` is called with


def grade_job(job: dict) -> Verdict:
    """The verdict on `job['response']`, with the program that was read in it.

    Args:
      job: either `tests`, a list of Python sources with asserts (MBPP), or `check`, the source of a function
        `check(candidate)`, with `entry_point`, the name of what it is given (HumanEval). Optional: `prompt`, source
        that the response continues or stands on (imports, helpers), and that `check` may use; `setup`, Python which
        runs behind the program and makes what `tests` pass to it; `limits`, fields of `sandbox.Limits`.

    Returns:
      `NO_ANSWER` if there is no program. `WRONG` if a test fails; `RUNTIME_ERROR`, `TIMEOUT`, `MEMORY`,
      `OUTPUT_LIMIT` if the program gives no answer that could be tested. `SANDBOX_ERROR` if the sandbox fails twice,
      or the tests are broken.

    Raises:
      UserError: the tests are no tests.
    """
    start = time.monotonic()
    tests = _compile_check(job) if 'check' in job else _compile_asserts(job)
    program = extract(job['response'], tests.entry_point, job.get('prompt', ''))
    outcome = Outcome.NO_ANSWER if program is None else _outcome(job, tests, program)
    return Verdict(outcome, program, time.monotonic() - start)


def _outcome(job: dict, tests: _Tests, program: str) -> Outcome:
    limits = Limits(**job.get('limits', {}))
    for _ in range(_TRIES):
        try:
            with Session(active(), limits) as session:
                session.load(program, job.get('setup', ''))
                return Outcome.CORRECT if tests.hold(session) else Outcome.WRONG
        except Failure as failure:
            return failure.outcome
        except SandboxError as error:
            logging.getLogger(__name__).warning('sandbox: %s', error)
    return Outcome.SANDBOX_ERROR


@dataclasses.dataclass(frozen=True)
class _Tests:
    """Trusted code, and the names in it that stand for functions of the program."""

    code: types.CodeType
    entry_point: str
    remote: Mapping[str, str]  # name here -> name in the program
    modules: frozenset[str] = frozenset()

    def hold(self, session: Session) -> bool:
        """Do they pass? Raises what a call has raised (`Failure`, `SandboxError`), whatever the tests made of that."""
        random.seed(0)  # some checks draw their inputs
        names = {'__name__': 'tests', '_source': Source}
        names |= {name: importlib.import_module(name) for name in self.modules}
        names |= {name: _stub(session, remote) for name, remote in self.remote.items()}
        passed = False
        try:
            exec(self.code, names)
            passed = True
        except NameError as error:  # nothing that an answer could cause
            raise SandboxError(f'the tests are broken: {error}') from error
        except Exception:  # a failed assert, or an answer that a test cannot work with
            pass
        if session.failure is not None:
            raise session.failure
        return passed


def _stub(session: Session, name: str) -> Callable:
    return lambda *args, **kwargs: session.call(name, args, kwargs)


def _compile_check(job: dict) -> _Tests:
    """HumanEval: the helpers of the prompt, the check, and the call of it."""
    if 'entry_point' not in job:
        raise UserError('a job with `check` needs `entry_point`, the name of the function that is checked')
    entry_point = job['entry_point']
    # A check may call the function by its name as well, which in the prompt is a function without a body.
    source = f'{job.get("prompt", "")}\n{entry_point} = {_CANDIDATE}\n{job["check"]}\ncheck({_CANDIDATE})\n'
    return _Tests(compile(_parse(source), 'check', 'exec'), entry_point, {_CANDIDATE: entry_point})


def _compile_asserts(job: dict) -> _Tests:
    """MBPP: what the asserts call, and neither they nor Python define, is the program's."""
    tree = _parse('\n'.join(job['tests']))
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise UserError(f'`tests` has no assert, so any program would pass: {job["tests"]!r}')
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in nodes if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    attributes = {node.value.id for node in ast.walk(tree)
                  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = frozenset((attributes & sys.stdlib_module_names) - bound)
    theirs = {node.id for node in nodes} - bound - modules
    called = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    if theirs.isdisjoint(called):  # a program may define what Python does too, `sum` for one
        theirs |= set(called[:1])
    calls = _Calls(theirs)
    tree = ast.fix_missing_locations(calls.visit(tree))
    if not calls.names:
        raise UserError(f'`tests` call no function of a program: {job["tests"]!r}')
    entry_point = job.get('entry_point', calls.names[0])
    return _Tests(compile(tree, 'tests', 'exec'), entry_point, {name: name for name in calls.names}, modules)


class _Calls(ast.NodeTransformer):
    """Finds the calls of what the program defines; arguments made of more of it become source to evaluate there."""

    def __init__(self, theirs: set[str]):
        self._theirs = theirs
        self.names: list[str] = []  # of the functions called, in order

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not isinstance(node.func, ast.Name) or node.func.id not in self._theirs:
            return self.generic_visit(node)
        self.names.append(node.func.id)
        node.args = [self._as_source(argument) for argument in node.args]
        for keyword in node.keywords:
            keyword.value = self._as_source(keyword.value)
        return node

    def _as_source(self, argument: ast.expr) -> ast.expr:
        if all(getattr(node, 'id', None) not in self._theirs for node in ast.walk(argument)):
            return argument
        return ast.Call(ast.Name('_source', ast.Load()), [ast.Constant(ast.unparse(argument))], [])


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f'the tests are not Python: {error}') from error
