"""The steps that say what the hardware is and how fast."""
