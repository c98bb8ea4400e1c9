"""What is freed is not handed back, and cleared, each time that it is taken again."""

import subprocess
import sys

PROGRAM = '''
import resource
from score_jax import allocation
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert {keep} is False or allocation.keep()
counts = []
for size in [26] * 5:
    before = faults()
    b'x' * 2**size
    counts.append(faults() - before)
print(*counts)
'''


def faults(keep: bool) -> list[int]:
    done = subprocess.run([sys.executable, '-c', PROGRAM.format(keep=keep)], capture_output=True, text=True, check=True)
    return [int(count) for count in done.stdout.split()]


def test_an_array_of_the_size_of_one_that_was_freed_takes_no_new_pages():
    first, *again = faults(True)
    assert first > 1000 and max(again) < first / 100
    assert min(faults(False)) > 1000
