"""Storage: atomic writes, locks, seals, the cache, and hashes of contents."""
