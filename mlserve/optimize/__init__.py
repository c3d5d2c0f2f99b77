"""From a trained model to variants in the store: imported, checked against the original, optimized, measured."""
