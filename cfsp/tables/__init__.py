"""Tables: records side by side."""
