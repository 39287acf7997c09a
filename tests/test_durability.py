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
KILLS = int(os.environ.get('VPOC_KILLS', 8))  # VPOC_KILLS=200 is the whole of it
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
    bars = random_walk(240, bars_per_session=13, seed=3)
    return Market('a walk', 'made here', front_month(bars), len(bars), NO_REJECTS, None, ES)


@pytest.fixture(scope='module')
def runs(small):
    "Two runs of different settings, ready to be written."
    return [run_all(small, RunConfig(rules=SignalRules(rule='migration', stop_volatility=s))) for s in (.3, .6)]


QUICK = RunConfig(filter=FilterConfig(members=2, hidden=(8,), lookbacks=(5, 10), first_sessions=120, step_sessions=60, epochs=3, garch=False))


def keep_run(place, small, runs, n): save_run(runs[n % 2], place/'run')


def run_is_whole(place, runs):
    saved = load_run(place/'run')  # of one run: its figures are those of its trades, its settings and its orders
    assert saved.metrics['original']['trades'] == len(saved.trades) and abs(saved.trades.net.sum() - saved.metrics['original']['total_profit']) < .005
    assert len(saved.signals) == len(saved.trades) + len(saved.skipped)
    written = runs[saved.config.rules.stop_volatility == .6]
    assert (saved.signals.stop.to_numpy() == written.signals.stop.to_numpy()).all()


def keep_trial(place, small, runs, n): record_trial(place, 'bars', {'n': n}, 1.)


def ledger_is_whole(place, runs):
    files = visible(place/'trials.parquet') if (place/'trials.parquet').exists() else []
    assert trials_of(place, 'bars').number == len(files)


def keep_cache(place, small, runs, n):
    for path in (place/'cache').glob('[!.]*.parquet'): path.unlink()
    assert len(read_bars(place/'bars.csv')[0]) == 60_000


def cache_is_whole(place, runs): assert len(read_bars(place/'bars.csv')[0]) == 60_000


OPTIONS = dict.fromkeys(training_runs.OPTIONS) | {'symbol': 'ES', 'seed': 0}


def keep_training(place, small, runs, n): training_runs.run_training(OPTIONS, QUICK, place/f'training-{n}')


def trainings_are_whole(place, runs):
    for folder in place.glob('training-*'):
        if (folder/'manifest.json').exists(): load_filter(folder/'model')


def died(work, k, longest, rng):
    "Whether a forked process that works was killed at a random moment, and had not failed before."
    if not (child := os.fork()):
        try:
            with open(os.devnull, 'w') as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
                for n in itertools.count(1000 * k): work(n)
        finally: os._exit(1)
    time.sleep(rng.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finish_trainings(place, small):
    "What a person does after a kill: --resume where that is possible, the same command again where not."
    for folder in place.glob('training-*'):
        if (folder/'manifest.json').exists(): continue
        training_runs.run_training(OPTIONS, QUICK, folder, resume=(folder/'arguments.json').exists())
        assert (folder/'manifest.json').exists()


WORK = {'run': (keep_run, run_is_whole), 'ledger': (keep_trial, ledger_is_whole), 'cache': (keep_cache, cache_is_whole), 'training': (keep_training, trainings_are_whole)}


@needs_fork
@pytest.mark.parametrize('name', WORK)
def test_killed_at_any_moment_nobody_sees_half_a_file(tmp_path, small, runs, name, monkeypatch):
    "A quarter of the kills each; the parent has loaded and compiled what the children need."
    import torch
    torch.set_num_threads(1)
    monkeypatch.setattr('vpoc_backtest.ml_backtest._report', lambda run: '<p>' * 200_000 + '</html>')  # drawing takes longest, and writes nothing
    monkeypatch.setattr(training_runs, 'load_market', lambda *args, **kwargs: small)
    monkeypatch.setattr(training_runs, '_save_pictures', lambda folder, *drawn: (folder/'history.png').write_bytes(b'PNG' * 10_000 + b'IEND\xaeB`\x82'))
    monkeypatch.setenv('VPOC_CACHE', str(tmp_path/'cache'))
    keep, check = WORK[name]
    work = lambda n: keep(tmp_path, small, runs, n)
    if name == 'cache': random_walk(154, seed=1)[:60_000].tz_localize(None).rename_axis('timestamp').to_csv(tmp_path/'bars.csv')
    work(0)
    start = time.monotonic()
    work(1)
    longest, rng, tally, each = 1.5 * (time.monotonic() - start), random.Random(7), Counter(), max(1, KILLS // 4)
    for k in range(1, each + 1):
        tally['killed'] += died(work, k, longest, rng)
        files = visible(tmp_path)
        for path in files: whole(path)
        check(tmp_path, runs)
        tally['files read'] += len(files)
        tally['unfinished'] += bool(leftovers(tmp_path))
    assert tally['killed'] == each, tally
    if name == 'training': finish_trainings(tmp_path, small)
    work(10**6)  # a rerun finishes
    check(tmp_path, runs)
    assert cleared(tmp_path), leftovers(tmp_path)
    print(name, dict(tally))
