"""Execution times of functions: measured whole today; composed from operators (COP) and kept current next."""
