"""`python -m bench`: the load generator."""

from bench.load import main

if __name__ == "__main__":
    main()
