"""The report: show records as one HTML page that needs no network."""
