"""The pages and the JSON behind them, for a browser on this machine only.

What a model or a file wrote leaves here as JSON, never as HTML, and the page puts it into text nodes; the policy that
is sent along forbids every script, style and address but the ones below. A request whose Host is not this machine is
refused, so that no web site can reach the data under a name of its own (DNS rebinding). Only reading is possible.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import sys
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from score_jax import plots, report_html
from score_jax.errors import UserError
from score_jax.report_style import STYLE
from score_jax.watch import search
from score_jax.watch.runs import Run, Watcher
from score_jax.watch.samples import Index, SampleFile, parse

ADDRESS = '127.0.0.1'
PAGE_MAX = 100  # samples
PIECE = 1 << 18  # bytes of a download that are in memory
TEXT_MAX = 1000  # characters of a text that is searched for
_TYPES = {'html': 'text/html', 'css': 'text/css', 'js': 'text/javascript', 'svg': 'image/svg+xml'}
_HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                               "require-trusted-types-for 'script'; trusted-types 'none'",
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer', 'Cache-Control': 'no-store',
    'Cross-Origin-Resource-Policy': 'same-origin', 'Cross-Origin-Opener-Policy': 'same-origin'}


class Refused(Exception):
    """A request that has no answer: HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Download(NamedTuple):
    """Bytes of a file that are sent as they are."""

    file: SampleFile
    start: int
    length: int

    def pieces(self) -> Iterator[bytes]:
        """The bytes, few at a time; they end early where the file has become shorter."""
        for at in range(self.start, self.start + self.length, PIECE):
            yield self.file.read(at, min(PIECE, self.start + self.length - at))


class Server(ThreadingHTTPServer):
    """Serves one watcher on `ADDRESS`; port 0 takes any free one."""

    daemon_threads = True

    def __init__(self, watcher: Watcher, port: int):
        """Raises `UserError` if the port is not to be had."""
        self.watcher = watcher
        self.files = _files()
        self._counting = threading.Lock()
        self.reading = threading.Lock()  # one answer at a time holds texts, so that their sizes do not add up
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            reason = 'is taken' if error.errno == errno.EADDRINUSE else f'cannot be opened ({error.strerror})'
            raise UserError(f'port: {port} {reason}; name another, or --port=0 for any free one.') from None

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Tells the watcher that somebody waits."""
        with self._counting:
            self.watcher.questions += 1
        try:
            yield
        finally:
            with self._counting:
                self.watcher.questions -= 1

    def handle_error(self, request, client_address) -> None:
        """A browser that closes its connection early is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f'http://{ADDRESS}:{self.server_port}/'


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together
    timeout = 60
    server: Server

    def do_GET(self) -> None:
        """Answers one request."""
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            host = None
        if host not in (ADDRESS, 'localhost'):
            return self._send(403, 'text/plain', b'This page is for this machine only.\n')
        try:
            address = urlsplit(self.path)
            query = Query(parse_qs(address.query, max_num_fields=2000))
        except ValueError:
            return self._send(400, 'text/plain', b'No such address.\n')
        if address.path in self.server.files:
            return self._send(200, *self.server.files[address.path])
        answer = ANSWERS.get(address.path)
        if answer is None:
            return self._send(404, 'text/plain', b'No such page.\n')
        with self.server.answering():
            try:
                value = answer(self.server, query)
            except Refused as refused:
                return self._send(refused.status, 'application/json', _json({'error': str(refused)}))
            except Exception as error:  # the page says so, and asks again
                traceback.print_exc()
                return self._send(500, 'application/json', _json({'error': f'The server failed: {error!r}'}))
        if isinstance(value, Download):
            return self._download(value)
        self._send(200, 'application/json', _json(value))

    def _download(self, what: Download) -> None:
        self._head(200, 'text/plain', what.length, {'Content-Disposition': 'attachment; filename="sample.json"'})
        sent = 0
        for piece in what.pieces():
            self.wfile.write(piece)
            sent += len(piece)
        if sent < what.length:
            self.close_connection = True  # the browser then says that it did not get all

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self._head(status, kind, len(body))
        self.wfile.write(body)

    def _head(self, status: int, kind: str, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        charset = '' if kind == 'application/json' else '; charset=utf-8'
        headers = {'Content-Type': kind + charset, 'Content-Length': str(length)} | _HEADERS | (more or {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args) -> None:
        """Nothing: a request is no event worth a line."""


class Query(dict):
    """The parameters of a request, {name: [value, ...]}."""

    def text(self, name: str) -> str:
        """The first value of a parameter; '' without one."""
        return self.get(name, [''])[0]

    def number(self, name: str) -> int | None:
        """A whole number of at most nine digits; None without one, and `Refused` for anything else."""
        value = self.text(name)
        if not value:
            return None
        if not value.isascii() or not value.isdecimal() or len(value) > 9:
            raise Refused(400, f'{name} is not a whole number.')
        return int(value)


# --- answers


def _about(server: Server, query: Query) -> dict:
    """What the page says in the words of the report: charts, kinds of samples, columns of the results."""
    return {
        'charts': [dataclasses.asdict(chart) for chart in plots.CHARTS],
        'kinds': [{'name': name, 'title': title, 'caption': caption}
                  for name, (title, caption) in report_html.KINDS.items()],
        'columns': [{'key': key, 'title': title, 'difference': difference}
                    for key, title, difference in report_html.COLUMNS]}


def _runs(server: Server, query: Query) -> dict:
    return {'runs': [run.summary() for run in server.watcher.runs.values()], 'progress': server.watcher.progress()}


def _details(server: Server, query: Query) -> dict:
    return _run(server, query.text('run')).details()


def _curves(server: Server, query: Query) -> dict:
    stage = _run(server, query.text('run')).stages.get(query.text('stage'))
    if stage is None:
        raise Refused(404, 'No such stage.')
    version = stage.metrics.version  # before the columns: what is added in between is asked for again
    return {'version': version, 'columns': stage.metrics.thinned()}


def _counts(server: Server, query: Query) -> dict:
    return search.count(_sample_files(server, query), _filter(query), server.watcher.labels.bits)


def _samples(server: Server, query: Query) -> dict:
    limit = min(query.number('limit') or PAGE_MAX, PAGE_MAX)
    start = None
    if 'run-from' in query:
        start = search.Place(query.text('run-from'), query.text('stage-from'), query.number('row-from') or 0)
    with server.reading:
        return search.page(_sample_files(server, query), _filter(query), server.watcher.labels.bits, start, limit)


def _sample(server: Server, query: Query) -> dict:
    with server.reading:
        place, file, index = _place(server, query)
        sample = parse(file.read(int(index.offset[place.row]), int(index.length[place.row])))
        if sample is None:
            raise Refused(404, 'This line is being written anew; try again.')
        return search.detail(sample, place, file.sources[index.source[place.row]],
                             server.watcher.labels.names(int(index.labels[place.row])))


def _raw(server: Server, query: Query) -> Download:
    place, file, index = _place(server, query)
    return Download(file, int(index.offset[place.row]), int(index.length[place.row]))


def _place(server: Server, query: Query) -> tuple[search.Place, SampleFile, Index]:
    """A sample that is there, with an index that has it."""
    place = search.Place(query.text('run'), query.text('stage'), query.number('row') or 0)
    stage = _run(server, place.run).stages.get(place.stage)
    if stage is None or place.row >= len(index := stage.samples.index):
        raise Refused(404, 'No such sample.')
    return place, stage.samples, index


def _run(server: Server, name: str) -> Run:
    run = server.watcher.runs.get(name)
    if run is None:
        raise Refused(404, 'No such run.')
    return run


def _sample_files(server: Server, query: Query) -> list[tuple[str, str, SampleFile]]:
    """Of the runs that are named, or of all."""
    names = query.get('run') or list(server.watcher.runs)
    return [file for name in dict.fromkeys(names) for file in _run(server, name).files()]


def _filter(query: Query) -> search.Filter:
    text = query.text('text')
    if len(text) > TEXT_MAX:
        raise Refused(400, f'The text to look for is longer than {TEXT_MAX} characters.')
    return search.Filter(tuple(query.get('label', ())), query.text('source'), query.number('upto'), text)


ANSWERS = {
    '/api/about': _about, '/api/runs': _runs, '/api/details': _details, '/api/curves': _curves,
    '/api/counts': _counts, '/api/samples': _samples, '/api/sample': _sample, '/api/raw': _raw}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(',', ':')).encode()


def _files() -> dict[str, tuple[str, bytes]]:
    """{address: (type, body)} of the page; nothing else on disk is ever served as it is."""
    files = {'/report.css': ('text/css', STYLE.encode())}
    for file in resources.files('score_jax.watch').joinpath('page').iterdir():
        kind = _TYPES.get(file.name.rpartition('.')[2])
        if kind:
            files[f'/{file.name}'] = (kind, file.read_bytes())
    return files | {'/': files['/index.html']}
