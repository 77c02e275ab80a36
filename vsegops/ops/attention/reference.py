"""The attention family in plain PyTorch: the executable definition, in float64 the truth."""
