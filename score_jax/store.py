"""Files at an address such as gs://BUCKET/RUN, through fsspec: what fails is tried again, and told in one sentence."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from score_jax import progress
from score_jax.errors import UserError

_VERSION = ('generation', 'ETag', 'etag', 'mtime', 'LastModified', 'last_modified', 'created')  # one says: other bytes
_WAITS = (1.0, 4.0, 16.0)  # seconds before an operation is tried once more
_LASTING = (FileNotFoundError, PermissionError, NotImplementedError)  # is not
_AT_ONCE = 8  # files that travel


def address(path: Path | str) -> str:
    """`path` as an address, '' if it is none; a `Path` has lost one of its slashes."""
    scheme, found, rest = str(path).partition(':/')
    return f'{scheme}://{rest.removeprefix("/").rstrip("/")}' if found and re.fullmatch(r'\w[\w+.-]+', scheme) else ''


def hint(path: str) -> str:
    """What to say of a `path` that should be a directory, where it is an address."""
    return ' (an address: copy it here, or mount the bucket as docs/scale.md says)' if address(path) else ''


def reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f'{error.strerror}: {error.filename}' if error.filename else error.strerror
    return ': '.join([type(error).__name__, *str(error).splitlines()[:1]])


class Store:
    """The files below an address, by names relative to it.

    It must replace a file as a whole, as buckets do. All methods raise `UserError` where it fails for longer than a few
    seconds.
    """

    def __init__(self, there: str):
        """Connects to nothing yet.

        Raises:
          UserError: no such store is known, or the package for it is not installed.
        """
        import fsspec  # here, since few runs have an address
        from fsspec.registry import known_implementations
        self.address, scheme = there, there.partition(':')[0]
        if scheme in ('file', 'local'):
            raise UserError(f'{there} is a folder of this machine; name it without {scheme}://.')
        try:
            self._files, self._root = fsspec.url_to_fs(there)
        except ImportError as error:
            package = known_implementations.get(scheme, {}).get('class', '').partition('.')[0]
            if package in ('', 'fsspec'):  # it knows the store itself, and needs another one
                package = getattr(error.__cause__, 'name', None) or scheme
            raise UserError(f'{there} needs the package {package}: pip install {package}') from error
        except Exception as error:
            raise UserError(
                f'{there} cannot be opened ({reason(error)}); an address is one of a bucket, such as gs://BUCKET/RUN.'
            ) from error

    def list(self) -> dict[str, tuple[int, str]]:
        """All files: size in bytes, and what differs as soon as the bytes do, as far as the store tells."""
        return self._do(self._list)

    def read(self, name: str) -> str:
        """The text of a file, '' if there is none."""
        return self._do(self._read, name)

    def write(self, name: str, text: str) -> None:
        """Writes a file."""
        self._do(self._files.pipe_file, self._path(name), text.encode())

    def get(self, names: Iterable[str], folder: Path) -> None:
        """Copies files into a folder of this machine, each of them whole or not at all."""
        self._each(lambda name: self._get(name, folder / name), names)

    def put(self, names: Iterable[str], folder: Path) -> None:
        """Copies files of a folder here."""
        self._each(lambda name: self._files.put_file(str(folder / name), self._path(name)), names)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files that may be gone already."""
        self._each(self._remove, names)

    def _path(self, name: str) -> str:
        return f'{self._root}/{name}'

    def _list(self) -> dict[str, tuple[int, str]]:
        self._files.invalidate_cache()
        try:
            found = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {
            path.removeprefix(self._root).lstrip('/'):
            (facts.get('size') or 0, next((str(facts[key]) for key in _VERSION if facts.get(key)), ''))
            for path, facts in found.items() if facts.get('type') == 'file' and not path.endswith('/')}

    def _read(self, name: str) -> str:
        try:
            return self._files.cat_file(self._path(name)).decode()
        except FileNotFoundError:
            return ''

    def _get(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f'{path.name}.tmp')
        self._files.get_file(self._path(name), str(half))
        half.replace(path)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def _each(self, do: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda name: self._do(do, name), names))

    def _do(self, operation: Callable, *args) -> Any:
        """What an operation gives, which is tried again where it fails."""
        for wait in (*_WAITS, None):
            try:
                return operation(*args)
            except Exception as error:
                if wait is None or isinstance(error, _LASTING):
                    raise UserError(
                        f'{self.address} cannot be read or written ({reason(error)}); once that is mended, the same '
                        'command goes on from there.') from error
                progress.say(f'{self.address}: warning: {reason(error)}; once more in {wait:g} s')
                time.sleep(wait)
