"""The fault matrix: one row per fault scenario, over the whole gateway."""
