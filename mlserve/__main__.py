"""`python -m mlserve` is the same program as the `mlserve` console script."""

from mlserve.cli.program import main

if __name__ == "__main__":
    main()
