"""What a store holds, as figures: the parts of `python -m asmil.data.inspect`."""
