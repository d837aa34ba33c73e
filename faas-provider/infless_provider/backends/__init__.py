"""Where instances run. A backend only acts; what to start, where and when is decided elsewhere."""
