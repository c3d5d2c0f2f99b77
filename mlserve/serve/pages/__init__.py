"""What the server tells people and their tools of itself: the landing page, the documentation, `/openapi.json`."""
