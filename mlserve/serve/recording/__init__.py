"""Recording what a server is asked, while it serves: when requests came, how large they were, and, if wanted, what they
held; for `mlserve bench --replay`.
"""
