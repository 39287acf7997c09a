"""Commands called in the process of the tests: what a command loads is loaded once, and not for each call of it."""
import base64
import contextlib
import io
import os
import signal
import subprocess
import sys
from unittest.mock import patch

from matplotlib import pyplot

from vpoc_backtest import cli, evidence, report, report_notebook

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


def sketched(name, *args, cwd):
    """The same for tests of figures and words: every picture of the report is a dot, one session in ten is tested for look-ahead.

    Both take most of a run without null markets; `typed` and `run_alone` do all of it.
    """
    png, checked = io.BytesIO(), evidence.check_orders
    pyplot.imsave(png, [[0.]])

    def dot(figure, **options):
        pyplot.close(figure)
        return base64.b64encode(png.getvalue()).decode()

    def some(make, bars, **options):
        sessions = bars.date.unique()
        return checked(make, bars, dates=sessions[::10] if len(sessions) > 20 else None, **options)

    with patch.object(report, '_figure_png', dot), patch.object(report_notebook, '_figure_png', dot), patch.object(evidence, 'check_orders', some):
        return typed(name, *args, cwd=cwd)
