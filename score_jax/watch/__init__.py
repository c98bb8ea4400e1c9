"""A local web page over running and finished workdirs: curves, runs side by side, every transcript.

    tail     a growing file, read once, also when it is truncated or replaced under the reader
    samples  an index of samples.jsonl: where each line stands, and what it can be filtered by
    search   a page of the samples that pass a filter and hold a text
    curves   metrics.jsonl in columns
    runs     the workdirs, followed by one thread in the background
    server   the pages and the JSON behind them, for this machine only

Reads files and never writes one; imports no jax.
"""
