"""The dense head in plain PyTorch: the executable definition, in float64 the truth."""
