"""Commands called in the process of the tests: what a command loads is loaded once, and not for each call of it."""
import contextlib
import io
import os
import signal
import subprocess
import sys

from vpoc_backtest import cli

ENTRIES = {'vpoc_backtest': cli.main, 'vpoc_train': cli.train_main, 'vpoc_evaluate': cli.evaluate_main}


def typed(name, *args, cwd):
    "What the command typed in the folder `cwd` ends with: its exit code, standard output and standard error."
    out, err = io.StringIO(), io.StringIO()
    code, argv, place, on_term = 0, sys.argv, os.getcwd(), signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            os.chdir(cwd)
            sys.argv = [name, *map(str, args)]
            ENTRIES[name]()
        except SystemExit as stop: code = stop.code or 0
        finally:
            os.chdir(place)
            sys.argv = argv
            signal.signal(signal.SIGTERM, on_term)
    return subprocess.CompletedProcess([name, *args], code, out.getvalue(), err.getvalue())
