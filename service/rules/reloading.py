"""The routing file, read at the start and again whenever it has changed. A change that is not valid changes nothing."""

from __future__ import annotations

import threading
from pathlib import Path

from service.rules.document import Routing, RoutingInvalid, read_routing


class ReloadingRouting:
    """`current` is always valid. Threads may share it."""

    def __init__(self, path: Path | None, profiles_dir: Path | None = None) -> None:
        """Raises: RoutingInvalid."""
        self._path, self._profiles_dir = path, profiles_dir
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._routing = read_routing(path, profiles_dir)
        self.refused = False  # whether the file's latest change is not in use

    @property
    def current(self) -> Routing:
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._routing, self.refused = read_routing(self._path, self._profiles_dir), False
                except RoutingInvalid:
                    self.refused = True
            return self._routing

    def _look(self) -> tuple[int, int]:
        if self._path is None:
            return (0, 0)
        try:
            status = self._path.stat()
        except OSError:
            return (-1, -1)
        return (status.st_mtime_ns, status.st_size)
