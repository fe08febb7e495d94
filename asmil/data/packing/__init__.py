"""The parts of `asmil.data.pack`: matching labels to slides, planning shards, limited worker processes."""
