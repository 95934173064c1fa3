"""Commands beside `cfsp` itself."""
