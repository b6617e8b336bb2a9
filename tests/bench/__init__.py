"""Benchmarks: what the product promises about speed, with both sides measured in one run."""
