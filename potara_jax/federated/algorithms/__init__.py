"""One file an algorithm; importing it registers it."""
