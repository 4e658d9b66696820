"""Pure functions on pictures: tensors in, tensors out. Nothing here knows PyAV or a model."""
