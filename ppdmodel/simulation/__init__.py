"""The schedule of PPD, event by event, on random or recorded matches; it knows no formula."""
