"""The report: records as one page that needs no network."""
