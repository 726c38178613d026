"""The work that nobody waits for: deciding about series, segmenting, delivering. Runs beside the gateway or alone."""
