"""Where this project keeps, for the user, what it can make or fetch again."""

import os
from pathlib import Path


def folder() -> Path | None:
    """SCORE_JAX_CACHE of the environment, else `score_jax` in the user's cache; None for a user without a home."""
    if given := os.environ.get('SCORE_JAX_CACHE'):
        return Path(given).expanduser().absolute()
    try:
        return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache').absolute() / 'score_jax'
    except RuntimeError:
        return None
