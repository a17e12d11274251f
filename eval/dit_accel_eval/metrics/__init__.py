"""Metrics of clips: one pure function per file."""
