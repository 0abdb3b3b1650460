"""`python -m fxcat`: the command."""

from fxcat.cli.main import run

if __name__ == "__main__":
    run()
