"""Tables, figures and pages from saved tables alone."""
