"""What is written is whole: whatever is killed, full, closed to writing or done twice at once."""
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from vpoc_backtest import keeping, training_runs
from vpoc_backtest.data import front_month, random_walk, read_bars
from vpoc_backtest.features import FilterConfig
from vpoc_backtest.keeping import UNFINISHED, clear_unfinished
from vpoc_backtest.luck import record_trial, trials_of
from vpoc_backtest.ml_backtest import ES, NO_REJECTS, Market, RunConfig, SignalRules, load_run, run_all, save_run
from vpoc_backtest.trade_filter import load_filter

here = Path(sys.executable).parent
KILLS = int(os.environ.get('VPOC_KILLS', 12))  # the full count is 200
needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')


def whole(path):
    "Read a file to its end, by its kind; raises where it is not whole."
    if path.suffix == '.json': return json.loads(path.read_text())
    if path.suffix == '.parquet': return pd.read_parquet(path)
    if path.suffix == '.safetensors':
        from safetensors import safe_open
        with safe_open(path, 'np') as file: return [file.get_tensor(k) for k in file.keys()]
    text = path.read_bytes()
    if path.suffix == '.csv': return pd.read_csv(path), text.endswith(b'\n') or 1 / 0
    if path.suffix == '.png': assert text.endswith(b'IEND\xaeB`\x82')
    if path.suffix == '.html': assert text.rstrip().endswith(b'</html>')
    if path.suffix == '.toml': assert text.endswith(b'\n')


def visible(folder):
    "Every file that a reader finds: names that begin with a dot are passed over."
    return [p for p in sorted(folder.rglob('*')) if p.is_file() and not any(part.startswith('.') for part in p.relative_to(folder).parts)]


def leftovers(folder): return [p for p in folder.rglob(f'.*{UNFINISHED}*')]


def cleared(folder):
    "Whether a later process removes what killed ones have left."
    for path in leftovers(folder):
        os.utime(path, (0, 0))
    for parent in {p.parent for p in leftovers(folder)}: clear_unfinished(parent)
    return not leftovers(folder)


@pytest.fixture(scope='module')
def small():
    bars = random_walk(150, bars_per_session=13, seed=3)
    return Market('a walk', 'made here', front_month(bars), len(bars), NO_REJECTS, None, ES)


@pytest.fixture(scope='module')
def runs(small):
    "Two runs of different settings, ready to be written."
    return [run_all(small, RunConfig(rules=SignalRules(rule='migration', stop_volatility=s))) for s in (.3, .6)]


QUICK = RunConfig(filter=FilterConfig(members=2, hidden=(8,), first_sessions=40, step_sessions=40, epochs=3, garch=False))


def keep_run(place, runs, n): save_run(runs[n % 2], place/'run')


def run_is_whole(place):
    if not (place/'run').exists(): return
    saved = load_run(place/'run')  # of one run: its figures are those of its trades, its settings and its orders
    assert saved.metrics['original']['trades'] == len(saved.trades) and abs(saved.trades.net.sum() - saved.metrics['original']['total_profit']) < .005
    assert len(saved.signals) == len(saved.trades) + len(saved.skipped)
    stop = (saved.signals.entry - saved.signals.stop).abs().sum()
    assert (saved.config.rules.stop_volatility == .6) == (stop > STOPS[0] + 1)


STOPS = [0.]


def keep_trial(place, runs, n): record_trial(place, 'bars', {'n': n}, 1.)


def ledger_is_whole(place):
    files = visible(place/'trials.parquet') if (place/'trials.parquet').exists() else []
    assert trials_of(place, 'bars').number == len(files)


def keep_cache(place, runs, n):
    os.environ['VPOC_CACHE'] = str(place/'cache')
    from vpoc_backtest import data
    bars = read_bars(place/'bars.csv')[0]
    assert len(bars) == 60_000
    for f in (place/'cache').glob('*.parquet'): f.unlink()


def cache_is_whole(place):
    os.environ['VPOC_CACHE'] = str(place/'cache')
    try: assert len(read_bars(place/'bars.csv')[0]) == 60_000
    finally: os.environ.pop('VPOC_CACHE')


def keep_training(place, small, n):
    folder = place/f'training-{n}'
    training_runs.load_market = lambda *args, **kwargs: small
    training_runs.run_training(dict.fromkeys(training_runs.OPTIONS) | {'symbol': 'ES', 'seed': 0}, QUICK, folder)


def trainings_are_whole(place):
    for folder in place.glob('training-*'):
        if (folder/'manifest.json').exists(): load_filter(folder/'model')


def killed(work, rounds, longest, check, place):
    "Work in forked processes that are killed at random moments; what readers found, and whether each died at work."
    rng, found = random.Random(7), Counter()
    for k in range(rounds):
        if not (child := os.fork()):
            try:
                with contextlib.redirect_stderr(open(os.devnull, 'w')), contextlib.redirect_stdout(open(os.devnull, 'w')):
                    for n in itertools.count(1000 * k): work(n)
            finally: os._exit(1)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        found['killed' if os.WIFSIGNALED(os.waitpid(child, 0)[1]) else 'failed'] += 1
        for path in visible(place): whole(path)
        found['with something unfinished'] += bool(leftovers(place))
        check(place)
    return found


@needs_fork
def test_killed_at_any_moment_nobody_sees_half_a_file(tmp_path, small, runs):
    "Run directories, ledger, cache and trainings; a quarter of the kills each."
    STOPS[0] = (runs[0].signals.entry - runs[0].signals.stop).abs().sum()
    bars = random_walk(154, bars_per_session=390, seed=1)[:60_000].tz_localize(None)
    tally, each = {}, max(1, KILLS // 4)
    import torch
    torch.set_num_threads(1)
    for name, work, check, longest in (('run', lambda p: lambda n: keep_run(p, runs, n), run_is_whole, 2.5), ('ledger', lambda p: lambda n: keep_trial(p, runs, n), ledger_is_whole, .2),
                                       ('cache', lambda p: lambda n: keep_cache(p, runs, n), cache_is_whole, .4), ('training', lambda p: lambda n: keep_training(p, small, n), trainings_are_whole, 3.)):
        place = tmp_path/name
        place.mkdir()
        if name == 'cache': bars.rename_axis('timestamp').to_csv(place/'bars.csv')
        work(place)(0)  # what is loaded and compiled here is there for every child
        tally[name] = killed(work(place), each, longest, check, place)
        work(place)(10**6)  # a rerun finishes
        check(place)
        assert cleared(place), leftovers(place)
        assert tally[name]['killed'] == each, tally
    print(KILLS, tally)
