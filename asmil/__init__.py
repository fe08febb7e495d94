"""ASMIL: attention-stabilized multiple-instance learning on slide-level bags of patch features."""

import os

__version__ = "0.1.0"

# Threads that spin while they wait make a training on busy cores several times slower. OpenMP reads this when torch is
# imported, so it has to stand before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
