"""The dense head's sample inputs, baselines and costs, for the tests and the benchmarks."""

OPERATORS: tuple[()] = ()
