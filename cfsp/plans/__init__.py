"""The plan: the decision as data, the gates that hold it, the surgery that carries it out."""
