"""Running requests together: `window` decides which (pure), `batcher` runs them."""
