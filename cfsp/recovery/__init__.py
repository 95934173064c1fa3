"""Recovery: training after surgery that restores a pruned model's quality."""
