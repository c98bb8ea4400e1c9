"""A headless Chromium for the tests of the page, driven over its DevTools pipe with nothing but Python."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

BINARY = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
_FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
          '--disable-background-networking', '--disable-component-update', '--hide-scrollbars',
          '--remote-debugging-pipe')
_PATIENCE = 30.0  # seconds


class Browser:
    """One page of a browser of its own; `events` keeps what the page logged, threw or was refused."""

    def __init__(self, profile: Path):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4, messages end with a zero byte.
        self._process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{to_read} 4>&{to_write}', 'bash', BINARY, *_FLAGS,
             f'--user-data-dir={profile}'],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._next, self._session = b'', 0, None
        self.events: list[dict] = []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def close(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters) -> dict:
        """One command; raises RuntimeError with what the browser says."""
        self._next += 1
        message = {'id': self._next, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == self._next:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]["message"]}')
                return answer['result']
            self.events.append(answer)

    def _receive(self) -> dict:
        while b'\0' not in self._buffer:
            if not select.select([self._read], [], [], _PATIENCE)[0]:
                raise RuntimeError(f'the browser has not answered for {_PATIENCE:g} s')
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError('the browser has gone')
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)

    def open(self, address: str) -> None:
        self.call('Page.navigate', url='about:blank')
        self.events.clear()
        self.call('Page.navigate', url=address)

    def js(self, expression: str):
        """The value of an expression in the page; promises are waited for."""
        answer = self.call('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in answer:
            raise RuntimeError(json.dumps(answer['exceptionDetails'])[:1000])
        return answer['result'].get('value')

    def until(self, expression: str) -> None:
        """Waits for an expression to be true."""
        deadline, error = time.monotonic() + _PATIENCE, ''
        while time.monotonic() < deadline:
            try:
                if self.js(f'Boolean({expression})'):
                    return
            except RuntimeError as caught:  # between two pages
                error = str(caught)
            time.sleep(0.05)
        text = self.js('document.body.innerText')[:2000]
        raise AssertionError(f'never true in the page: {expression}\n{error}\n{text}')

    def key(self, key: str) -> None:
        text = {'text': key} if len(key) == 1 else {}
        self.call('Input.dispatchKeyEvent', type='keyDown', key=key, **text)
        self.call('Input.dispatchKeyEvent', type='keyUp', key=key)

    def window(self, width: int, height: int, scheme: str = 'light') -> None:
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': scheme}])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))

    def complaints(self) -> list[str]:
        """What went wrong in the page since it was opened: exceptions, errors in its log, refused addresses."""
        self.js('1')
        out = []
        for event in self.events:
            parameters = event.get('params', {})
            if event.get('method') == 'Runtime.exceptionThrown':
                out.append(json.dumps(parameters['exceptionDetails'])[:600])
            if event.get('method') == 'Log.entryAdded' and parameters['entry']['level'] == 'error':
                out.append(parameters['entry']['text'])
        return out
