"""Launchers of `cfsp -m`. They stand here because Hydra takes launchers from `hydra_plugins` alone.

Hydra runs every module here that has no underscore in front whenever it starts, and again if it was
imported before. So what a launcher needs is imported when it launches, and what travels between
processes has its class in `_base`.
"""
