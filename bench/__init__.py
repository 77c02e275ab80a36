"""Benchmarks of every operator that a family's `spec` describes, against PyTorch without them.

    python -m bench run
    python -m bench compare before.json after.json

See bench/README.md for what is measured and how.
"""
