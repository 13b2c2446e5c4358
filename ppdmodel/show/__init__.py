"""What people look at: figures, the timeline, the explorer's page."""
