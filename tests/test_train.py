"""Tests of training that a notebook cell cannot hold: a killed process, several processes, commands."""
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import sketched, typed
from safetensors.numpy import load_file

from vpoc_backtest.data import random_walk

here = Path(sys.executable).parent
SETTINGS = '''[filter]
arch = "mlp"
members = 4
hidden = [16]
first_sessions = 100
step_sessions = 50
epochs = 12
learning_rate = 0.01
garch = false
patience = 12
'''
WALK = ['--data', 'walk.parquet', '--config', 'small.toml']
ONE_THREAD = {'OMP_NUM_THREADS': '1'}


def only(folder):
    "Return the single training in a folder of trainings."
    training, = (p for p in folder.iterdir() if (p/'arguments.json').exists())
    return training


def run(command, *args, cwd, **env):
    return subprocess.run([here/command, *map(str, args)], cwd=cwd, env=os.environ | env,
                          capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def market(tmp_path_factory):
    "Return a folder with 320 sessions of a random walk as Parquet, settings, and a small training."
    folder = tmp_path_factory.mktemp('market')
    bars = random_walk(320, bars_per_session=130, seed=3)
    bars.reset_index().to_parquet(folder/'walk.parquet')
    (folder/'small.toml').write_text(SETTINGS)
    done = run('vpoc_train', *WALK, '--output', 'whole', cwd=folder, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return folder


def same_model(a, b, tolerance=0.):
    a, b = (load_file(x/'model/model.safetensors') for x in (a, b))
    assert a.keys() == b.keys()
    return all(np.abs(a[k] - b[k]).max() <= tolerance for k in a)


def test_killed_training_resumes_bit_for_bit(market):
    command = [here/'vpoc_train', *WALK, '--output', 'killed']
    process = subprocess.Popen(command, cwd=market, env=os.environ | ONE_THREAD, stderr=subprocess.DEVNULL)
    checkpoint = 'checkpoints/pass-000.safetensors'
    latest = time.monotonic() + 120
    while not [*market.glob(f'killed/*/{checkpoint}')] and time.monotonic() < latest: time.sleep(.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = only(market/'killed')
    between_epochs = (killed/checkpoint).exists() and not (killed/'manifest.json').exists()
    assert between_epochs, 'it was to be killed between two epochs'
    other = typed('vpoc_train', '--resume', '--output', 'killed', '--epochs', 50, cwd=market)
    assert other.returncode == 2 and 'leave this one out' in other.stderr
    done = run('vpoc_train', '--resume', '--output', 'killed', cwd=market, **ONE_THREAD)
    assert done.returncode == 0 and 'resuming' in done.stderr, done.stderr
    whole = only(market/'whole')
    assert same_model(whole, killed)
    assert (whole/'predictions.csv').read_bytes() == (killed/'predictions.csv').read_bytes()
    assert not (killed/'checkpoints').exists()
    again = typed('vpoc_train', '--resume', '--output', killed, cwd=market)
    assert again.returncode == 2 and 'holds no training that has not ended' in again.stderr


def test_two_processes_train_the_model_of_one(market):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command = [*torchrun, '--no_python', here/'vpoc_train', *WALK, '--output', 'two']
    done = subprocess.run(command, cwd=market, env=os.environ | ONE_THREAD, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_model(only(market/'whole'), only(market/'two'), 1e-5)


def test_saved_filter_is_tested_on_later_sessions(market):
    (market/'TRAINING').mkdir(exist_ok=True)
    done = run('vpoc_train', *WALK, '--epochs', 3, cwd=market)
    assert done.returncode == 0, done.stderr
    trained, = (market/'TRAINING').iterdir()
    files = {'model', 'predictions.csv', 'metrics.json', 'history.json', 'history.png', 'calibration.png',
             'config.toml', 'arguments.json', 'manifest.json'}
    assert files == {p.name for p in trained.iterdir()}
    pictures = {p: p.read_bytes() for p in trained.glob('*.png')}
    ranked = run('vpoc_evaluate', 'TRAINING', cwd=market)
    assert ranked.stdout == typed('vpoc_evaluate', cwd=market).stdout
    assert ranked.returncode == 0 and trained.name in ranked.stdout, ranked.stderr
    assert (market/'TRAINING/evaluation/calibration.png').exists(), ranked.stderr
    assert pictures == {p: p.read_bytes() for p in trained.glob('*.png')} and len(pictures) == 2
    done = run('vpoc_backtest', '--data', 'walk.parquet', '--model', 'latest', '--placebo', 0,
               '--setups', 0, '--out', 'latest', cwd=market)
    assert done.returncode == 0, done.stderr
    span = json.loads((trained/'metrics.json').read_text())['training_span']
    metrics = json.loads((market/'latest/metrics.json').read_text())
    equity = pd.read_csv(market/'latest/equity.csv')
    assert metrics['filter']['first_session'] == equity.date.iloc[0] > span[1] and metrics['ml'] is not None


def test_filter_trained_on_all_sessions_is_refused(market):
    trained = typed('vpoc_train', *WALK, '--epochs', 2, '--until', '2030-01-01', '--output', 'all', cwd=market)
    assert trained.returncode == 0
    done = typed('vpoc_backtest', '--data', 'walk.parquet', '--model', 'all', '--out', 'seen', cwd=market)
    span = json.loads((only(market/'all')/'metrics.json').read_text())['training_span']
    assert done.returncode == 2 and span[0] in done.stderr and span[1] in done.stderr
    assert 'has seen them all' in done.stderr
    assert 'Traceback' not in done.stderr and not (market/'seen').exists()


@pytest.mark.parametrize('args, message', [
    (['--hidden_layers', 'wide'], 'write whole numbers'),
    (['--epochs', '0'], 'epochs=0'),
    (['--arch', 'tree'], 'mlp or attention'),
    (['--until', 'soon'], 'write it as 2016-06-30'),
    (['--resume'], 'leave out --resume'),
    (['--data', 'no.csv'], 'no such file'),
    (['--device_ids', '7,8'], 'torch sees'),
    (['--output', 'mine.txt'], 'is a file'),
    (['--data', 'short.csv'], 'too little to train on'),
    (['--model_path', 'x'], 'unrecognized'),
    (['--epochs', 'many'], 'as in --epochs 40'),
    (['--learning_rate', '-1'], 'as in --learning_rate 0.001'),
    (['--config', 'none.toml'], 'there is no such file')])
def test_wrong_input_gives_one_line(tmp_path, market, args, message):
    (tmp_path/'mine.txt').touch()
    short = random_walk(80, bars_per_session=26).tz_localize(None).rename_axis('timestamp')
    short.to_csv(tmp_path/'short.csv')
    if '--data' not in args: args = ['--data', market/'walk.parquet', *args]
    done = typed('vpoc_train', *args, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
    assert 'Traceback' not in done.stderr, done.stderr
    assert not (tmp_path/'TRAINING').exists() or not list((tmp_path/'TRAINING').iterdir())


def test_pickle_in_place_of_a_model_is_never_executed(market, tmp_path):
    class Trap:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/executed',)
    shutil.copytree(only(market/'whole'), tmp_path/'trap')
    args = ['--data', market/'walk.parquet', '--model', tmp_path/'trap', '--out', 'out']
    for name in ('model.safetensors', 'model.json'):
        file = tmp_path/'trap/model'/name
        before = file.read_bytes()
        file.write_bytes(pickle.dumps(Trap()))
        done = typed('vpoc_backtest', *args, cwd=tmp_path)
        assert done.returncode == 2 and name in done.stderr and 'Traceback' not in done.stderr, done.stderr
        file.write_bytes(before)
    assert not (tmp_path/'executed').exists()


def test_same_command_works_twice_and_its_trainings_are_found(market):
    for _ in range(2):
        done = typed('vpoc_train', *WALK, '--epochs', 2, '--output', 'kept/', cwd=market)
        assert done.returncode == 0, done.stderr
    trainings = sorted((market/'kept').iterdir())
    assert len(trainings) == 2 and done.stdout.splitlines()[-1] == f'kept/{trainings[1].name}'
    inside = typed('vpoc_train', '--data', 'walk.parquet', '--output', trainings[0], cwd=market)
    assert inside.returncode == 2 and 'is a training: name the folder above it' in inside.stderr
    ranked = typed('vpoc_evaluate', 'kept', cwd=market)
    assert ranked.returncode == 0 and all(t.name in ranked.stdout for t in trainings), ranked.stderr
    assert 'Not ranked' not in ranked.stdout, ranked.stderr
    listed = typed('vpoc_evaluate', *trainings, cwd=market)
    assert listed.stdout.splitlines()[:4] == ranked.stdout.splitlines()[:4]
    args = ['--data', 'walk.parquet', '--model', 'kept', '--placebo', 0, '--setups', 0, '--out', 'by-kept']
    done = sketched('vpoc_backtest', *args, cwd=market)
    assert done.returncode == 0, done.stderr
    assert trainings[1].name in json.loads((market/'by-kept/metrics.json').read_text())['filter']['source']


def test_filters_are_tested_on_other_bars(market):
    from vpoc_backtest.ml_backtest import run_pipeline
    from vpoc_backtest.run_config import load_market, read_config
    random_walk(520, bars_per_session=130, seed=4).reset_index().to_parquet(market/'later.parquet')
    training = only(market/'whole')
    done = typed('vpoc_evaluate', training, '--data', 'later.parquet', '--output', 'tested', cwd=market)
    assert done.returncode == 0, done.stderr
    ranking = pd.read_csv(market/'tested/ranking.csv')
    last = json.loads((training/'metrics.json').read_text())['training_span'][1]
    assert ranking.first_session[0] > last and ranking.source[0] == 'later.parquet'
    assert {p.name for p in (market/'tested').iterdir()} == {'ranking.csv', 'calibration.png'}
    later, config = load_market(market/'later.parquet'), read_config(training/'config.toml')
    filtered = run_pipeline(later, config, model=str(training), device='cpu').filtered
    assert str(filtered.first.date()) == ranking.first_session[0]  # the same as with vpoc_backtest --model
    same_bars = typed('vpoc_evaluate', training, '--data', 'walk.parquet', cwd=market)
    assert same_bars.returncode == 0  # the last quarter
    alone = typed('vpoc_evaluate', training, '--vix', 'later.parquet', cwd=market)
    assert alone.returncode == 2 and 'together with --data only' in alone.stderr


def test_trainings_that_cannot_be_compared_are_listed_apart(market):
    random_walk(320, bars_per_session=130, seed=9).reset_index().to_parquet(market/'other.parquet')
    (market/'wide.toml').write_text(SETTINGS + '[backtest]\nslippage_ticks = 3.0\n')
    for extra in (['--until', '2015-10-30'], ['--data', 'other.parquet'], [], ['--config', 'wide.toml']):
        done = typed('vpoc_train', *WALK, '--epochs', 2, '--output', 'mixed', *extra, cwd=market)
        assert done.returncode == 0
    done = typed('vpoc_evaluate', 'mixed', 'whole', cwd=market)
    assert done.returncode == 0, done.stderr
    apart = done.stdout[done.stdout.index('Not ranked'):]
    reasons = ('other sessions: ', 'other bars: other.parquet',
               'other settings: backtest.slippage_ticks = 3.0, not 1.0')
    assert all(reason in apart for reason in reasons)
    assert len(re.findall('^20.*: other', apart, re.M)) == 3
