"""The suites of `experiments.benchmark`: what they measure, and how."""
