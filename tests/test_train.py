"""What a notebook cell cannot hold of training: a process that is killed, processes that train together, the commands in a row."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from vpoc_backtest.data import random_walk

here = Path(sys.executable).parent
SETTINGS = '[filter]\nmembers = 4\nhidden = [16]\nfirst_sessions = 100\nstep_sessions = 50\nepochs = 12\nlearning_rate = 0.01\ngarch = false\npatience = 12\n'


def run(command, *args, cwd, **env):
    return subprocess.run([here/command, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | env)


@pytest.fixture(scope='module')
def market(tmp_path_factory):
    "A folder with 320 sessions of a random walk as Parquet, and settings for small networks."
    folder = tmp_path_factory.mktemp('market')
    bars = random_walk(320, bars_per_session=130, seed=3)
    bars.reset_index().to_parquet(folder/'walk.parquet')
    (folder/'small.toml').write_text(SETTINGS)
    done = run('vpoc_train', '--data', 'walk.parquet', '--config', 'small.toml', '--output', 'whole', cwd=folder, OMP_NUM_THREADS='1')
    assert done.returncode == 0, done.stderr
    return folder


def same_model(a, b, tolerance=0.):
    a, b = (load_file(x/'model/model.safetensors') for x in (a, b))
    assert a.keys() == b.keys()
    return all(np.abs(a[k] - b[k]).max() <= tolerance for k in a)


def test_a_killed_training_goes_on_bit_for_bit(market):
    args = ['--data', 'walk.parquet', '--config', 'small.toml', '--output', 'killed']
    process = subprocess.Popen([here/'vpoc_train', *args], cwd=market, env=os.environ | {'OMP_NUM_THREADS': '1'}, stderr=subprocess.DEVNULL)
    place, patience = market/'killed/checkpoints/pass-000.safetensors', time.monotonic() + 120
    while not place.exists() and time.monotonic() < patience: time.sleep(.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert place.exists() and not (market/'killed/manifest.json').exists(), 'it was to be killed between two epochs'
    other = run('vpoc_train', '--resume', '--output', 'killed', '--epochs', 50, cwd=market)
    assert other.returncode == 2 and 'leave this one out' in other.stderr
    done = run('vpoc_train', '--resume', '--output', 'killed', cwd=market, OMP_NUM_THREADS='1')
    assert done.returncode == 0 and 'resuming' in done.stderr, done.stderr
    assert same_model(market/'whole', market/'killed')
    assert (market/'whole/predictions.csv').read_bytes() == (market/'killed/predictions.csv').read_bytes()
    assert not (market/'killed/checkpoints').exists()


def test_two_processes_train_the_model_of_one(market):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--no_python', here/'vpoc_train']
    args = ['--data', 'walk.parquet', '--config', 'small.toml', '--output', 'two']
    done = subprocess.run([*torchrun, *args], cwd=market, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_model(market/'whole', market/'two', 1e-5)


def test_a_saved_filter_judges_what_it_has_not_seen(market):
    (market/'TRAINING').mkdir(exist_ok=True)
    done = run('vpoc_train', '--data', 'walk.parquet', '--config', 'small.toml', '--epochs', 3, cwd=market)
    assert done.returncode == 0, done.stderr
    trained, = (market/'TRAINING').iterdir()
    assert {'model', 'predictions.csv', 'metrics.json', 'history.json', 'history.png', 'calibration.png', 'config.toml', 'arguments.json',
            'manifest.json'} == {p.name for p in trained.iterdir()}
    ranked = run('vpoc_evaluate', 'TRAINING', cwd=market)
    assert ranked.stdout == run('vpoc_evaluate', cwd=market).stdout
    assert ranked.returncode == 0 and trained.name in ranked.stdout and (market/'TRAINING/calibration.png').exists(), ranked.stderr
    done = run('vpoc_backtest', '--data', 'walk.parquet', '--model', 'latest', '--out', 'latest', cwd=market)
    assert done.returncode == 0, done.stderr
    span = json.loads((trained/'metrics.json').read_text())['training_span']
    metrics, equity = json.loads((market/'latest/metrics.json').read_text()), pd.read_csv(market/'latest/equity.csv')
    assert metrics['filter']['first_session'] == equity.date.iloc[0] > span[1] and metrics['ml'] is not None


def test_a_filter_that_has_seen_everything_is_refused(market):
    assert run('vpoc_train', '--data', 'walk.parquet', '--config', 'small.toml', '--epochs', 2, '--until', '2030-01-01', '--output', 'all', cwd=market).returncode == 0
    done = run('vpoc_backtest', '--data', 'walk.parquet', '--model', 'all', '--out', 'seen', cwd=market)
    span = json.loads((market/'all/metrics.json').read_text())['training_span']
    assert done.returncode == 2 and span[0] in done.stderr and span[1] in done.stderr and 'has seen them all' in done.stderr
    assert 'Traceback' not in done.stderr and not (market/'seen').exists()


@pytest.mark.parametrize('args, message', [
    (['--hidden_layers', 'wide'], 'write whole numbers'), (['--epochs', '0'], 'epochs=0'), (['--arch', 'tree'], 'use mlp or attention'),
    (['--until', 'soon'], 'write it as 2016-06-30'), (['--resume'], 'leave out --resume'), (['--data', 'no.csv'], 'no such file'),
    (['--device_ids', '7,8'], 'torch sees'), (['--output', '.'], 'is not empty'), (['--config', 'none.toml'], 'there is no such file')])
def test_what_a_user_can_mend_is_one_line(tmp_path, market, args, message):
    (tmp_path/'mine.txt').touch()
    if '--data' not in args: args = ['--data', market/'walk.parquet', *args]
    done = run('vpoc_train', *args, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_a_pickle_in_the_place_of_a_model_is_never_executed(market, tmp_path):
    class Trap:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/executed',)
    import pickle
    import shutil
    shutil.copytree(market/'whole', tmp_path/'trap')
    for name in ('model.safetensors', 'model.json'):
        before = (tmp_path/'trap/model'/name).read_bytes()
        (tmp_path/'trap/model'/name).write_bytes(pickle.dumps(Trap()))
        done = run('vpoc_backtest', '--data', market/'walk.parquet', '--model', tmp_path/'trap', '--out', 'out', cwd=tmp_path)
        assert done.returncode == 2 and name in done.stderr and 'Traceback' not in done.stderr, done.stderr
        (tmp_path/'trap/model'/name).write_bytes(before)
    assert not (tmp_path/'executed').exists()
