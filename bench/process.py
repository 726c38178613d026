"""What Linux says of a process: which one serves a port, and its time and memory."""

from __future__ import annotations

import os
from pathlib import Path

import httpx


def pid_of(client: httpx.Client) -> int:
    """The process of `running_service`, found by its port."""
    (pid,) = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdecimal() and f"\0{client.base_url.port}\0" in read_command(path)
    ]
    return pid


def read_command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int | str, name: str) -> float:
    """Args: pid: or "self". name: of a line of its status: VmRSS, resident now; VmHWM, at most."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
