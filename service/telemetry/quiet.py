"""Silences the libraries that would put element values into logs: pydicom and highdicom, through both of their ways.

A pydicom warning reads `Invalid value for VR DA: 'DOE^JANE 1970'`. It comes as a Python warning and as a log record;
both are stopped here and the records counted. See docs/decisions/0005-no-patient-data-in-logs.md.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

LIBRARIES = ("pydicom", "highdicom", "nibabel", "PIL", "python_multipart")


class _Counter(logging.Handler):
    def __init__(self, count: Callable[[], None]) -> None:
        super().__init__()
        self._count = count

    def emit(self, record: logging.LogRecord) -> None:
        self._count()


def silence_foreign_libraries(count: Callable[[], None]) -> None:
    """Stop what these libraries would log; `count` is called once per silenced log record."""
    for library in LIBRARIES:
        logger = logging.getLogger(library)
        logger.handlers = [_Counter(count)]
        logger.propagate = False
        for name in [name for name in logging.root.manager.loggerDict if name.startswith(f"{library}.")]:
            logging.getLogger(name).handlers = []  # nibabel's own writes to stderr
        warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
    logging.captureWarnings(False)
    # One JSON line per request is ours to write; uvicorn's own would add the raw query string.
    logging.getLogger("uvicorn.access").disabled = True
