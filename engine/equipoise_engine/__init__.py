"""The Equipoise engine: everything that reads scans, computes and writes results.

This file imports nothing of the engine, so that `equipoise_engine.client` and `equipoise_engine.protocol` can be
imported by the window without loading torch.
"""

import os

__version__ = "0.1.0"

# Threads that spin while they wait take the cores from those they wait for: beside other work on the machine
# that costs a factor of ten. It has to be said before torch or numba loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
