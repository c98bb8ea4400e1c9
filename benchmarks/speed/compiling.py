"""How long jax compiles, and how often: of any side that runs on it."""

from __future__ import annotations

from collections.abc import Callable

import jax

jax.config.update('jax_enable_compilation_cache', False)  # what is measured is compiled here
_DURATIONS: list[float] = []


@jax.monitoring.register_event_duration_secs_listener
def _listen(event: str, seconds: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
        _DURATIONS.append(seconds)


def counted(once: Callable[[], dict]) -> Callable[[], dict]:
    """`once`, which also tells the seconds (`compile`) and the number (`programs`) of what it compiled."""
    def run() -> dict:
        _DURATIONS.clear()
        return once() | {'compile': sum(_DURATIONS), 'programs': len(_DURATIONS)}
    return run
