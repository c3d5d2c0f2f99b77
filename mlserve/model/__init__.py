"""What a model is: named tensors, the files that hold it, the store that keeps its versions, and rows to feed it."""
