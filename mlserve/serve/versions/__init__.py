"""Which versions are served: what the store holds, what the policy wants of it, and the way from one to the next."""
