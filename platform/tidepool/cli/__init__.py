"""The command line: one module a group of verbs, and how they print, fail and follow jobs."""
