"""Trace-driven simulation: a simulated clock and backend under the real planner, dispatcher and batching policy.

The law of this folder: it owns no policy of its own. What decides here is imported from where it decides in production.
"""
