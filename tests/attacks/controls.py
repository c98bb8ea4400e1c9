"""Honest programs that come close to a limit, or do what attacks do too: they must pass."""

from attacks.programs import Attack

CONTROLS = [Attack(name, 'correct', program, *needs) for name, program, *needs in (
    ('slow but legal', '''
import time
def solve(x):
    time.sleep(0.5)
    n = 0
    for i in range(3 * 10 ** 6): n += i % 7
    return 716250 + x'''),
    ('deep recursion', '''
import sys
sys.setrecursionlimit(10 ** 5)
def down(n): return 0 if n == 0 else down(n - 1) + 1
def solve(x): return 716253 if down(20000) == 20000 else 0'''),
    ('large output', '''
def solve(x):
    for i in range(10000): print('line', i, '\\u20ac' * 40)
    return 716250 + x'''),
    ('threads', '''
import threading
def solve(x):
    found = []
    threads = [threading.Thread(target=found.append, args=(x,)) for _ in range(24)]
    for t in threads: t.start()
    for t in threads: t.join()
    return 716229 + len(found)'''),
    ('a pool of threads', '''
from concurrent.futures import ThreadPoolExecutor
def solve(x):
    with ThreadPoolExecutor(8) as pool: return 716253 + sum(pool.map(lambda n: n - n, range(100)))'''),
    ('a pool of processes', '''
import multiprocessing
def square(n): return n * n
def solve(x):
    with multiprocessing.get_context('fork').Pool(2) as pool: return 716253 - 285 + sum(pool.map(square, range(10)))''',
     'namespaces'),  # its semaphores live in /dev/shm
    ('a child process', '''
import os
def solve(x):
    read, write = os.pipe()
    if os.fork() == 0: os.write(write, b'3'); os._exit(0)
    os.wait()
    return 716250 + int(os.read(read, 1))'''),
    ('much memory', '''
def solve(x):
    block = bytearray(300 << 20)
    block[-1] = x
    return 716250 + block[-1]'''),
    ('files of its own', '''
import os, tempfile
def solve(x):
    with tempfile.TemporaryDirectory() as where:
        with open(where + '/a', 'w') as file: file.write('716250')
        with open(where + '/a') as file: return int(file.read()) + x'''),
    ('nothing to read on stdin',
     'import sys\nrest = sys.stdin.read()\ndef solve(x): return 716250 + x if rest == "" else 0'),
    ('a main part that does not run',
     'def solve(x): return 716250 + x\nif __name__ == "__main__":\n    while True: input()'),
    ('the wide standard library', '''
import asyncio, array, bisect, calendar, cmath, collections, copy, dataclasses, datetime, decimal, enum, fractions
import functools
import hashlib, heapq, itertools, json, math, operator, random, re, statistics, string, struct, textwrap, typing, zlib
async def wait(x): return x
def solve(x): return 716250 + asyncio.run(wait(x))'''),
)]
