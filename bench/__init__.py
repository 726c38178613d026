"""Measurements. The networks alone (`bench.engine`), the service through its public API (`bench.overhead`), and real
tumours through it (`bench.tumours`). Each prints a table and writes JSON into bench/results."""
