"""Golden values: see generate.py, which writes them."""
