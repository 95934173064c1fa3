"""This machine and this process: versions, memory, what a run shares with the program that called it."""
