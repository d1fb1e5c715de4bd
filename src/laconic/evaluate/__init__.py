"""What a model can do on real data, and what its compression cost: `evaluate` and `compare`."""

from laconic.evaluate.run import EvaluationReport, compare, evaluate

__all__ = ["EvaluationReport", "compare", "evaluate"]
