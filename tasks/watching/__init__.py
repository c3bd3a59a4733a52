"""The steps that watch data: what shards hold today, beside what a model was trained on."""
