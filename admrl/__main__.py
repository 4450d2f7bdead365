"""`python -m admrl`: the command line, of the interpreter that runs."""

from admrl.cli import main

if __name__ == "__main__":
    main()
