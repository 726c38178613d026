"""Measurements of time: the networks alone (`bench.engine`), and the service through its public API (`bench.overhead`).
Each prints a table and writes JSON into bench/results. Quality is measured by `python -m training evaluate`."""
