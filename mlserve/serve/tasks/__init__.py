"""From what a person has, a text or an image, to the tensors a model takes, and from its tensors to an answer."""
