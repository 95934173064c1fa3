"""This machine and this process: versions, memory, and the global state that a run shares with its caller."""
