"""What runs where, how fast each instance may be fed, and when to think again. Decisions only: nothing here acts."""
