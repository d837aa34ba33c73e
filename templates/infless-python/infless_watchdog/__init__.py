"""The batching watchdog: one instance's queue, model and HTTP edge. Ships alone in a function's image."""
