"""Records: what one run was, what it found, and why it failed."""
