"""The plan: the decision as data, the gates that hold it, the surgery that carries it out.

The package is not called `plan` because `cfsp.plan(...)` is the public function.
"""
