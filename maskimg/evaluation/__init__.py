"""Figures about tokenizers, models and samples, and charts and cards that show them.
It judges what others trained and trains nothing but its own judges."""
