"""The same ranks made with other tools: one script a rival, each run in its own environment."""
