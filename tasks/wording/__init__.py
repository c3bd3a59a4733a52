"""Facts in words: what people read of a model, in its report and on its card."""
