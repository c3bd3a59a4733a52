"""The step that fits a model: by iterating, or exactly."""
