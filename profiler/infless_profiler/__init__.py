"""Execution times: of models from their operators, of functions whole; measured, learned and kept current."""
