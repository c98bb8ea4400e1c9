"""The speed of a two-turn step beside its peers; `python benchmarks/run.py` runs it."""
