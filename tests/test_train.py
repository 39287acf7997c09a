"""What a notebook cell cannot hold of training: a process that is killed, processes that train together, the commands in a row."""
import json
import os
import re
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


def only(folder):
    "The training in a folder of trainings."
    training, = (p for p in folder.iterdir() if (p/'arguments.json').exists())
    return training


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
    place, patience = 'checkpoints/pass-000.safetensors', time.monotonic() + 120
    while not [*market.glob(f'killed/*/{place}')] and time.monotonic() < patience: time.sleep(.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = only(market/'killed')
    assert (killed/place).exists() and not (killed/'manifest.json').exists(), 'it was to be killed between two epochs'
    other = run('vpoc_train', '--resume', '--output', 'killed', '--epochs', 50, cwd=market)
    assert other.returncode == 2 and 'leave this one out' in other.stderr
    done = run('vpoc_train', '--resume', '--output', 'killed', cwd=market, OMP_NUM_THREADS='1')
    assert done.returncode == 0 and 'resuming' in done.stderr, done.stderr
    whole = only(market/'whole')
    assert same_model(whole, killed)
    assert (whole/'predictions.csv').read_bytes() == (killed/'predictions.csv').read_bytes()
    assert not (killed/'checkpoints').exists()
    again = run('vpoc_train', '--resume', '--output', killed, cwd=market)
    assert again.returncode == 2 and 'holds no training that has not ended' in again.stderr


def test_two_processes_train_the_model_of_one(market):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--no_python', here/'vpoc_train']
    args = ['--data', 'walk.parquet', '--config', 'small.toml', '--output', 'two']
    done = subprocess.run([*torchrun, *args], cwd=market, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_model(only(market/'whole'), only(market/'two'), 1e-5)


def test_a_saved_filter_judges_what_it_has_not_seen(market):
    (market/'TRAINING').mkdir(exist_ok=True)
    done = run('vpoc_train', '--data', 'walk.parquet', '--config', 'small.toml', '--epochs', 3, cwd=market)
    assert done.returncode == 0, done.stderr
    trained, = (market/'TRAINING').iterdir()
    assert {'model', 'predictions.csv', 'metrics.json', 'history.json', 'history.png', 'calibration.png', 'config.toml', 'arguments.json',
            'manifest.json'} == {p.name for p in trained.iterdir()}
    pictures = {p: p.read_bytes() for p in trained.glob('*.png')}
    ranked = run('vpoc_evaluate', 'TRAINING', cwd=market)
    assert ranked.stdout == run('vpoc_evaluate', cwd=market).stdout
    assert ranked.returncode == 0 and trained.name in ranked.stdout and (market/'TRAINING/evaluation/calibration.png').exists(), ranked.stderr
    assert pictures == {p: p.read_bytes() for p in trained.glob('*.png')} and len(pictures) == 2
    done = run('vpoc_backtest', '--data', 'walk.parquet', '--model', 'latest', '--out', 'latest', cwd=market)
    assert done.returncode == 0, done.stderr
    span = json.loads((trained/'metrics.json').read_text())['training_span']
    metrics, equity = json.loads((market/'latest/metrics.json').read_text()), pd.read_csv(market/'latest/equity.csv')
    assert metrics['filter']['first_session'] == equity.date.iloc[0] > span[1] and metrics['ml'] is not None


def test_a_filter_that_has_seen_everything_is_refused(market):
    assert run('vpoc_train', '--data', 'walk.parquet', '--config', 'small.toml', '--epochs', 2, '--until', '2030-01-01', '--output', 'all', cwd=market).returncode == 0
    done = run('vpoc_backtest', '--data', 'walk.parquet', '--model', 'all', '--out', 'seen', cwd=market)
    span = json.loads((only(market/'all')/'metrics.json').read_text())['training_span']
    assert done.returncode == 2 and span[0] in done.stderr and span[1] in done.stderr and 'has seen them all' in done.stderr
    assert 'Traceback' not in done.stderr and not (market/'seen').exists()


@pytest.mark.parametrize('args, message', [
    (['--hidden_layers', 'wide'], 'write whole numbers'), (['--epochs', '0'], 'epochs=0'), (['--arch', 'tree'], 'use mlp or attention'),
    (['--until', 'soon'], 'write it as 2016-06-30'), (['--resume'], 'leave out --resume'), (['--data', 'no.csv'], 'no such file'),
    (['--device_ids', '7,8'], 'torch sees'), (['--output', 'mine.txt'], 'is a file'), (['--data', 'short.csv'], 'too little to train on'), (['--model_path', 'x'], 'unrecognized'),
    (['--epochs', 'many'], 'as in --epochs 40'), (['--learning_rate', '-1'], 'as in --learning_rate 0.001'), (['--config', 'none.toml'], 'there is no such file')])
def test_what_a_user_can_mend_is_one_line(tmp_path, market, args, message):
    (tmp_path/'mine.txt').touch()
    random_walk(80, bars_per_session=26).tz_localize(None).rename_axis('timestamp').to_csv(tmp_path/'short.csv')
    if '--data' not in args: args = ['--data', market/'walk.parquet', *args]
    done = run('vpoc_train', *args, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr, done.stderr
    assert not (tmp_path/'TRAINING').exists() or not list((tmp_path/'TRAINING').iterdir())


def test_a_pickle_in_the_place_of_a_model_is_never_executed(market, tmp_path):
    class Trap:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/executed',)
    import pickle
    import shutil
    shutil.copytree(only(market/'whole'), tmp_path/'trap')
    for name in ('model.safetensors', 'model.json'):
        before = (tmp_path/'trap/model'/name).read_bytes()
        (tmp_path/'trap/model'/name).write_bytes(pickle.dumps(Trap()))
        done = run('vpoc_backtest', '--data', market/'walk.parquet', '--model', tmp_path/'trap', '--out', 'out', cwd=tmp_path)
        assert done.returncode == 2 and name in done.stderr and 'Traceback' not in done.stderr, done.stderr
        (tmp_path/'trap/model'/name).write_bytes(before)
    assert not (tmp_path/'executed').exists()


def test_the_same_command_works_twice_and_what_it_wrote_is_found(market):
    args = ['--data', 'walk.parquet', '--config', 'small.toml', '--epochs', 2, '--output', 'kept/']
    for _ in range(2):
        done = run('vpoc_train', *args, cwd=market)
        assert done.returncode == 0, done.stderr
    trainings = sorted((market/'kept').iterdir())
    assert len(trainings) == 2 and done.stdout.splitlines()[-1] == f'kept/{trainings[1].name}'
    inside = run('vpoc_train', '--data', 'walk.parquet', '--output', trainings[0], cwd=market)
    assert inside.returncode == 2 and 'is a training: name the folder above it' in inside.stderr
    ranked = run('vpoc_evaluate', 'kept', cwd=market)
    assert ranked.returncode == 0 and all(t.name in ranked.stdout for t in trainings) and 'Not ranked' not in ranked.stdout, ranked.stderr
    assert run('vpoc_evaluate', *trainings, cwd=market).stdout.splitlines()[:4] == ranked.stdout.splitlines()[:4]
    done = run('vpoc_backtest', '--data', 'walk.parquet', '--model', 'kept', '--placebo', 0, '--out', 'by-kept', cwd=market)
    assert done.returncode == 0 and trainings[1].name in json.loads((market/'by-kept/metrics.json').read_text())['filter']['source'], done.stderr


def test_filters_are_judged_on_other_bars(market):
    random_walk(520, bars_per_session=130, seed=4).reset_index().to_parquet(market/'later.parquet')
    training = only(market/'whole')
    done = run('vpoc_evaluate', training, '--data', 'later.parquet', '--output', 'judged', cwd=market)
    assert done.returncode == 0, done.stderr
    ranking = pd.read_csv(market/'judged/ranking.csv')
    last = json.loads((training/'metrics.json').read_text())['training_span'][1]
    assert ranking.first_session[0] > last and ranking.source[0] == 'later.parquet' and {p.name for p in (market/'judged').iterdir()} == {'ranking.csv', 'calibration.png'}
    from vpoc_backtest.ml_backtest import run_pipeline
    from vpoc_backtest.run_config import load_market, read_config
    judged = run_pipeline(load_market(market/'later.parquet'), read_config(training/'config.toml'), model=str(training), device='cpu').filtered
    assert str(judged.first.date()) == ranking.first_session[0]  # as vpoc_backtest --model judges it
    seen = run('vpoc_evaluate', training, '--data', 'walk.parquet', cwd=market)
    assert seen.returncode == 0  # the last quarter
    alone = run('vpoc_evaluate', training, '--vix', 'later.parquet', cwd=market)
    assert alone.returncode == 2 and 'together with --data only' in alone.stderr


def test_what_cannot_be_compared_is_listed_apart(market):
    for extra in (['--until', '2015-10-30'], ['--data', 'other.parquet'], []):
        random_walk(320, bars_per_session=130, seed=9).reset_index().to_parquet(market/'other.parquet')
        args = ['--data', 'walk.parquet', '--config', 'small.toml', '--epochs', 2, '--output', 'mixed', *extra]
        assert run('vpoc_train', *args, cwd=market).returncode == 0
    (market/'wide.toml').write_text(SETTINGS + '[backtest]\nslippage_ticks = 3.0\n')
    assert run('vpoc_train', '--data', 'walk.parquet', '--config', 'wide.toml', '--epochs', 2, '--output', 'mixed', cwd=market).returncode == 0
    done = run('vpoc_evaluate', 'mixed', 'whole', cwd=market)
    assert done.returncode == 0, done.stderr
    apart = done.stdout[done.stdout.index('Not ranked'):]
    assert all(reason in apart for reason in ('other sessions: ', 'other bars: other.parquet', 'other settings: backtest.slippage_ticks = 3.0, not 1.0'))
    assert len(re.findall('^20.*: other', apart, re.M)) == 3
