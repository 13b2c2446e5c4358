"""The schedule of PPD, event by event, on random or recorded matches, without any formula."""
