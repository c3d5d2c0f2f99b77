"""What is sent: rows made up or read, encoded once before the run; and what must come back."""
