"""What is written is whole: whatever is killed, full, closed to writing or done twice at once."""
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from vpoc_backtest import training_runs
from vpoc_backtest.cli import _backtest_command, cli_errors
from vpoc_backtest.data import ES, random_walk
from vpoc_backtest.features import FilterConfig
from vpoc_backtest.meta_labeling import load_filter
from vpoc_backtest.ml_backtest import load_run, run_pipeline, save_run
from vpoc_backtest.multiple_testing import _load_trials, record_trial
from vpoc_backtest.readers import read_bars
from vpoc_backtest.rolls import front_month
from vpoc_backtest.run_config import _NO_REJECTS, MarketData, RunConfig, load_market
from vpoc_backtest.signals import SignalRules
from vpoc_backtest.storage import _UNFINISHED, remove_stale

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
    return [
        p
        for p in sorted(folder.rglob('*'))
        if p.is_file() and not any(part.startswith('.') for part in p.relative_to(folder).parts)
    ]


def leftovers(folder): return [p for p in folder.rglob(f'.*{_UNFINISHED}*')]


def cleared(folder):
    "Whether a later process removes what killed ones have left."
    for path in leftovers(folder):
        os.utime(path, (0, 0))
    for parent in {p.parent for p in leftovers(folder)}: remove_stale(parent)
    return not leftovers(folder)


@pytest.fixture(scope='module')
def small():
    bars = random_walk(240, bars_per_session=13, seed=3)
    return MarketData('a walk', 'made here', front_month(bars), len(bars), _NO_REJECTS, None, ES)


@pytest.fixture(scope='module')
def runs(small):
    "Two runs of different settings, ready to be written."
    return [
        run_pipeline(small, RunConfig(rules=SignalRules(rule='migration', stop_volatility=s)))
        for s in (0.3, 0.6)
    ]


QUICK = RunConfig(
    filter=FilterConfig(
        arch='mlp', members=2, hidden=(8,), lookbacks=(5, 10), first_sessions=120, step_sessions=60, epochs=3,
        garch=False
    )
)


def keep_run(place, small, runs, n): save_run(runs[n % 2], place/'run')


def run_is_whole(place, runs):
    saved = load_run(place / 'run')  # of one run: its figures are those of its trades, settings and orders
    assert saved.metrics['original']['trades'] == len(saved.trades)
    assert abs(saved.trades.net.sum() - saved.metrics['original']['total_profit']) < 0.005
    assert len(saved.signals) == len(saved.trades) + len(saved.skipped)
    written = runs[saved.config.rules.stop_volatility == .6]
    assert (saved.signals.stop.to_numpy() == written.signals.stop.to_numpy()).all()


def keep_trial(place, small, runs, n): record_trial(place, 'bars', {'n': n}, 1.)


def ledger_is_whole(place, runs):
    files = visible(place/'trials.parquet') if (place/'trials.parquet').exists() else []
    assert _load_trials(place, 'bars').number == len(files)


def keep_cache(place, small, runs, n):
    for path in (place/'cache').glob('[!.]*.parquet'): path.unlink()
    assert len(read_bars(place/'bars.csv')[0]) == 60_000


def cache_is_whole(place, runs): assert len(read_bars(place/'bars.csv')[0]) == 60_000


OPTIONS = dict.fromkeys(training_runs._OPTIONS) | {'symbol': 'ES', 'seed': 0}


def keep_training(place, small, runs, n):
    training_runs._train_in_folder(OPTIONS, QUICK, place / f'training-{n}')


def trainings_are_whole(place, runs):
    for folder in place.glob('training-*'):
        if (folder/'manifest.json').exists(): load_filter(folder/'model')


def died(work, k, longest, rng):
    "Whether a forked process that works was killed at a random moment, and had not failed before."
    if not (child := os.fork()):
        try:
            with (
                open(os.devnull, 'w') as nowhere,
                contextlib.redirect_stderr(nowhere),
                contextlib.redirect_stdout(nowhere),
            ):
                for n in itertools.count(1000 * k): work(n)
        finally: os._exit(1)
    time.sleep(rng.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finish_trainings(place, small):
    "What a person does after a kill: --resume where that is possible, the same command again where not."
    for folder in place.glob('training-*'):
        if (folder/'manifest.json').exists(): continue
        training_runs._train_in_folder(OPTIONS, QUICK, folder, resume=(folder/'arguments.json').exists())
        assert (folder/'manifest.json').exists()


WORK = {
    'run': (keep_run, run_is_whole),
    'ledger': (keep_trial, ledger_is_whole),
    'cache': (keep_cache, cache_is_whole),
    'training': (keep_training, trainings_are_whole),
}


@needs_fork
@pytest.mark.parametrize('name', WORK)
def test_killed_at_any_moment_nobody_sees_half_a_file(tmp_path, small, runs, name, monkeypatch):
    "A quarter of the kills each; the parent has loaded and compiled what the children need."
    import torch
    torch.set_num_threads(1)
    page = '<p>' * 200_000 + '</html>'  # drawing takes longest, and writes nothing
    monkeypatch.setattr('vpoc_backtest.ml_backtest._report', lambda run: page)
    monkeypatch.setattr(training_runs, 'load_market', lambda *args, **kwargs: small)
    monkeypatch.setattr(
        training_runs,
        '_save_pictures',
        lambda folder, *drawn: (folder / 'history.png').write_bytes(b'PNG' * 10_000 + b'IEND\xaeB`\x82'),
    )
    monkeypatch.setenv('VPOC_CACHE', str(tmp_path/'cache'))
    keep, check = WORK[name]
    work = lambda n: keep(tmp_path, small, runs, n)
    if name == 'cache':
        random_walk(154, seed=1)[:60_000].tz_localize(None).rename_axis('timestamp').to_csv(
            tmp_path / 'bars.csv'
        )
    work(0)
    start = time.monotonic()
    work(1)
    longest = 1.5 * (time.monotonic() - start)
    rng = random.Random(7)
    tally = Counter()
    each = max(1, KILLS // 4)
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


COMMAND = ['--model', 'none', '--placebo', '0', '--setups', '0', '--data', 'walk.csv', '--out', 'out']


def command(*args, cwd, **env):
    return subprocess.run(
        [here / 'vpoc_backtest', *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | env,
    )


@pytest.fixture
def place(tmp_path):
    random_walk(60, bars_per_session=13).tz_localize(None).rename_axis('timestamp').to_csv(
        tmp_path / 'walk.csv'
    )
    return tmp_path


def test_the_command_killed_and_typed_again(place):
    assert command(*COMMAND, cwd=place).returncode == 0
    before, rng = load_run(place/'out'), random.Random(5)
    for _ in range(max(1, KILLS // 8)):
        process = subprocess.Popen(
            [here / 'vpoc_backtest', *COMMAND], cwd=place, stderr=subprocess.PIPE, text=True
        )
        for line in process.stderr:
            if line.startswith('evidence'): break
        time.sleep(rng.uniform(0, 3))
        process.kill()
        process.communicate()
        for path in visible(place): whole(path)
        pd.testing.assert_frame_equal(load_run(place/'out').trades, before.trades)
    for path in leftovers(place): os.utime(path, (0, 0))
    assert command(*COMMAND, cwd=place).returncode == 0
    assert not leftovers(place) and {p.name for p in place.iterdir()} == {'walk.csv', 'out', 'BACKTEST'}


def test_two_runs_at_once_do_not_mix(place):
    "Two runs with one --out and one ledger: one complete run stays, and the neighbours of both are counted."
    processes = []
    for n in (3, 6):
        (place/f'{n}.toml').write_text(f'[rules]\nrule = "migration"\nstop_volatility = 0.{n}\n')
        processes.append(
            subprocess.Popen(
                [here / 'vpoc_backtest', *COMMAND, '--config', f'{n}.toml'],
                cwd=place,
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        )
    assert [p.wait(300) for p in processes] == [0, 0]
    saved = load_run(place/'out')
    assert saved.metrics['original']['trades'] == len(saved.trades)
    assert saved.trades.net.sum() == pytest.approx(saved.metrics['original']['total_profit'])
    alone = save_run(run_pipeline(load_market(place/'walk.csv'), saved.config), place/'alone')
    for name in ('trades.csv', 'signals.csv', 'equity.csv'):
        assert (alone / name).read_bytes() == (place / 'out' / name).read_bytes()
    ledger = pd.read_parquet(place/'BACKTEST/trials.parquet')
    assert len(ledger) == 50
    assert ledger.settings.nunique() == 35
    assert not leftovers(place)  # stops of 0.3, 0.45 and 0.6 are neighbours of both


def test_two_trainings_at_the_same_time(place):
    bars = random_walk(240, bars_per_session=13, seed=3)
    bars.tz_localize(None).rename_axis('timestamp').to_csv(place/'long.csv')
    (place / 'small.toml').write_text(
        '[filter]\narch = "mlp"\nmembers = 2\nhidden = [8]\nlookbacks = [5, 10]\nfirst_sessions = 120\n'
        'step_sessions = 60\nepochs = 3\ngarch = false\n'
    )
    start = lambda: subprocess.Popen(
        [here / 'vpoc_train', '--data', 'long.csv', '--config', 'small.toml', '--output', 'one'],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
    )
    both = [start(), start()]
    assert [p.wait(300) for p in both] == [0, 0], [p.stderr.read() for p in both]
    trainings = [p for p in (place/'one').iterdir() if p.is_dir()]  # each made its own
    assert len(trainings) == 2
    for training in trainings:
        load_filter(training/'model')
        assert not (training/'checkpoints').exists()
    assert not leftovers(place)


def asked(capsys, monkeypatch, cwd, **options):
    "The command in this process: its exit code and the last line on standard error."
    monkeypatch.chdir(cwd)
    try:
        cli_errors(_backtest_command)(
            **dict(model='none', placebo=0, setups=0, data=str(cwd / 'walk.csv'), out='out') | options
        )
    except SystemExit as e:
        return e.code, capsys.readouterr().err.splitlines()[-1]
    return 0, capsys.readouterr().err


def is_a_line(ended, *words):
    code, line = ended
    assert code == 2 and line.startswith('vpoc_backtest: ') and all(w in line for w in words), ended


@pytest.fixture
def mounted(place):
    "Two small file systems in memory: one of 100 KB, one closed to writing."
    folders, done = [place/'full', place/'closed'], []
    for folder, option in zip(folders, ('size=100k', 'ro')):
        folder.mkdir()
        if (
            sys.platform != 'linux'
            or os.geteuid()
            or subprocess.run(
                ['mount', '-t', 'tmpfs', '-o', option, 'tmpfs', folder], capture_output=True
            ).returncode
        ):
            break
        done.append(folder)
    if len(done) == 2: yield folders
    for folder in done: subprocess.run(['umount', '-l', folder])
    if len(done) < 2: pytest.skip('nothing can be mounted here')


def test_a_full_or_closed_disk_is_a_line(place, mounted, capsys, monkeypatch):
    full, closed = mounted
    done = command(*COMMAND[:-1], full/'out', cwd=place)
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr, done.stderr
    assert 'no space left on device: free some space' in done.stderr.splitlines()[-1], done.stderr
    assert list(full.iterdir()) == []
    is_a_line(asked(capsys, monkeypatch, place, out=str(closed/'out')), 'nothing can be written', '--out')
    code, told = asked(capsys, monkeypatch, place, ledger=str(closed))
    assert code == 0 and 'not counted' in told
    monkeypatch.setenv('VPOC_CACHE', str(full/'cache'))
    monkeypatch.setattr('vpoc_backtest.readers._LEAST_TO_KEEP', 0)
    (full/'ballast').write_bytes(b' ' * 98_000)
    assert asked(capsys, monkeypatch, place, out='again', ledger=str(closed))[0] == 0
    assert load_run(place / 'again').metrics == load_run(place / 'out').metrics
    bars = random_walk(240, bars_per_session=13, seed=3)
    monkeypatch.setattr(
        training_runs,
        'load_market',
        lambda *args, **kwargs: MarketData(
            'a walk', 'made here', front_month(bars), len(bars), _NO_REJECTS, None, ES
        ),
    )
    with pytest.raises(OSError, match='No space left'):
        training_runs._train_in_folder(OPTIONS, QUICK, full / 'training')


def test_a_file_that_may_not_grow_is_a_line(place):
    "The same without mounting anything: the system refuses to write more than a few KB to any file."
    limited = (
        'import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'import vpoc_backtest.ml_backtest; '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); '
        'from vpoc_backtest.cli import _backtest_command, cli_errors; '
        "cli_errors(_backtest_command)(model='none', placebo=0, setups=0, data='walk.csv', out='out')"
    )
    done = subprocess.run(
        [sys.executable, '-c', limited],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {'NUMBA_CACHE_DIR': str(place / 'numba')},
    )
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr, done.stderr
    assert 'file too large' in done.stderr.splitlines()[-1], done.stderr
    assert not (place/'out').exists() and not leftovers(place)


def test_nothing_read_can_write_elsewhere(place, capsys, monkeypatch):
    "Names in an archive, in settings and in a filter are names, and never places to write to."
    inside = place/'a/b'
    inside.mkdir(parents=True)
    with zipfile.ZipFile(place / 'bars.zip', 'w') as archive:
        archive.writestr('../../evil.csv', (place / 'walk.csv').read_text())
    code, told = asked(capsys, monkeypatch, inside, data=str(place/'bars.zip'))
    assert code == 0 and len(read_bars(place/'bars.zip')[0]) == 60 * 13, told
    for text in (
        'out = "/tmp/evil"',
        '[data]\nout = "../evil"',
        '[rules]\nrule = "../../evil"',
        '[filter]\narch = "../evil"',
    ):
        (inside/'my.toml').write_text(text)
        is_a_line(asked(capsys, monkeypatch, inside, data=str(place/'walk.csv'), config='my.toml'), 'my.toml')
    (inside/'filter').mkdir()
    (inside / 'filter/model.json').write_text(
        json.dumps(
            {
                'format': 2,
                'kind': '../evil',
                'architecture': {'out': '../evil'},
                'about': {'feature_names': ['../evil']},
                'output': '../evil',
            }
        )
    )
    is_a_line(
        asked(capsys, monkeypatch, inside, data=str(place / 'walk.csv'), model='filter'),
        'does not describe a model',
    )
    assert {p.name for p in inside.iterdir()} == {'out', 'BACKTEST', 'my.toml', 'filter'}
    assert {p.name for p in place.iterdir()} == {'walk.csv', 'bars.zip', 'a'}
    assert [p.name for p in (place / 'a').iterdir()] == ['b']


def test_a_run_or_filter_of_another_version_says_why_not(place, runs, capsys, monkeypatch):
    save_run(runs[0], place/'out')
    manifest = json.loads((place/'out/manifest.json').read_text())
    assert manifest['format'] == 3
    (place/'out/manifest.json').write_text(json.dumps(manifest | {'format': 99}))
    with pytest.raises(ValueError, match='is of format 99, written by version .*: update vpoc_backtest'):
        load_run(place / 'out')
    (place/'filter').mkdir()
    (place/'filter/model.json').write_text('{"format": 99}')
    is_a_line(
        asked(capsys, monkeypatch, place, model='filter'),
        'is of version 99, this library reads 2',
        'train the model again',
    )


def _two_workers():
    from vpoc_backtest.parallel import map_parallel
    assert list(map_parallel(abs, [-1, -2], jobs=2)) == [1, 2]


def test_a_child_process_does_not_wait_for_its_idle_workers():
    import multiprocessing
    child = multiprocessing.get_context('spawn').Process(target=_two_workers)
    child.start()
    child.join(120)  # joblib keeps idle workers for 300 s
    alive, code = child.is_alive(), child.exitcode
    child.kill()
    assert not alive and code == 0
