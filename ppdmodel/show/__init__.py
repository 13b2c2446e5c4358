"""Figures, the timeline, and the explorer's page."""
