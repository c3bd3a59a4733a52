"""One job over several processes: where they run, what each tells, and what each does with its part of the data."""
