"""Passes: run tokens through a model, whole (`forward`) or one block at a time (`walk`)."""

`walk` moves all batches from block to block, in order, and stores no arguments of blocks. It also calls one
block with the arguments of a real pass, for training that takes windows in any order.
"""
