"""ASMIL: attention-stabilized multiple-instance learning on slide-level bags of patch features."""

__version__ = "0.1.0"
