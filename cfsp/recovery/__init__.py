"""Recovery: training that gives a pruned model back what it lost."""
