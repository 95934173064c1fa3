"""The model: families, blocks, sites, and the parts that a pruned model needs."""
