"""Answers kept for later: nothing yet. Caches are off unless asked for (R73), and their keys hold the tenant (R70)."""
