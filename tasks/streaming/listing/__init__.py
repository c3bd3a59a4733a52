"""Which shards there are, and how many rows they have."""
