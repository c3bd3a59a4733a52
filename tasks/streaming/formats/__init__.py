"""Bytes → rows: what a shard must look like, and how it is decoded."""
