"""`python -m tests.parity.in_little MODULE ARGUMENTS...`: runs a module in which `vit_b` is the network in little."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace

from contract.sizes import CONFIGURATIONS
from tests.parity.little import LITTLE

if __name__ == "__main__":
    CONFIGURATIONS["vit_b"] = replace(LITTLE, name="vit_b")
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
