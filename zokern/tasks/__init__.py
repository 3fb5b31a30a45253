"""Data sets, and how a language model is asked about them."""
