"""Files that are whole or absent: atomic writes, locks, seals, the cache, names of contents."""
