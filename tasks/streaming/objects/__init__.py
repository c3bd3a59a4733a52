"""One object's bytes: where it lies, and how they come whole or not at all."""
