"""Launchers of `cfsp -m`. They are here because Hydra finds launchers only in `hydra_plugins`.

At every start Hydra runs all modules here without a leading underscore, even if they were imported before.
So launchers import what they need when they launch, and classes that are sent to other processes are in
`_base`.
"""
