"""Why a model is (not) fast: facts are measured, findings follow from the facts, each with what to try next."""
