"""Token lists come back as they were written, or are not there at all."""

import os

import pytest

from score_jax import ragged


def test_columns_come_back_as_they_were_written(tmp_path):
    columns = {'tokens': [[1, 2], [3], [4, 5, 6]], 'turns': [[0, 1], [2], [0, 0, 1]]}
    ragged.write(tmp_path / 'a' / 'rows.npz', **columns)
    assert ragged.read(tmp_path / 'a' / 'rows.npz') == columns
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['rows.npz']


def test_a_write_that_does_not_end_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'rows.npz'
    ragged.write(path, tokens=[[1]])

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
        ragged.write(path, tokens=[[2]])
    assert ragged.read(path) == {'tokens': [[1]]}
