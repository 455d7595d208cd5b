"""The Equipoise engine: everything that reads scans, computes and writes results.

This file imports nothing, so that `equipoise_engine.client` and `equipoise_engine.protocol` can be
imported by the window without loading torch.
"""

__version__ = "0.1.0"
