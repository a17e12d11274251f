"""Tuning: find the fastest profile that holds a quality, or the best quality at a speed."""
