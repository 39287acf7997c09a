"""The chain of registrations: what is changed is named, what is killed loses nothing, two at once lose nothing."""
import contextlib
import json
import os
import random
import signal
import time
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest

from vpoc_backtest.data import random_walk
from vpoc_backtest.monitor import (
    _chain,
    _confidence_sequence,
    _ledger_path,
    _log_capital,
    _log_capital_since,
    _sealed,
    monitor_trades,
    record_trades,
    register,
    verify_registrations,
)
from vpoc_backtest.run_config import RunConfig
from vpoc_backtest.storage import _UNFINISHED

KILLS = int(os.environ.get('VPOC_KILLS', 100))
needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')
BARS = random_walk(3, bars_per_session=13, seed=1)
DAYS = pd.bdate_range('2016-01-04', periods=400)


def trades_until(n): return pd.DataFrame({'date': DAYS[:n], 'r_multiple': np.linspace(-1, 2, 400)[:n]})


@pytest.fixture
def chain(tmp_path):
    "Three registrations, the first with a filter, the first two with a ledger."
    (tmp_path/'filter').mkdir()
    (tmp_path/'filter/model.json').write_text('{"a": 1}')
    (tmp_path/'filter/model.safetensors').write_bytes(bytes(range(256)))
    folder = tmp_path/'registrations'
    for k in range(3):
        path = register(RunConfig(), BARS, [1., -.5, .3], model=tmp_path/'filter' if k == 0 else None, folder=folder,
                        note=f'number {k}')
        if k < 2: record_trades(path, trades_until(20))
    assert verify_registrations(folder) == []
    return folder


def test_a_changed_byte_anywhere_is_named(chain):
    "100 of 100, over registrations, settings, filter and ledgers; and every single byte of one registration."
    rng = random.Random(0)
    files = [*chain.iterdir(), *(chain.parent/'filter').iterdir()]
    for _ in range(100):
        path = rng.choice(files)
        data = path.read_bytes()
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1:])
        said = verify_registrations(chain)
        path.write_bytes(data)
        assert said and any(path.name in text or 'chain' in text for text in said), (path, at)
    path = _chain(chain)[1]
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        assert verify_registrations(chain)
    path.write_bytes(data)
    assert verify_registrations(chain) == []


@pytest.mark.parametrize('cut', [1, 20, 100])
def test_a_shorter_ledger_line_is_named(chain, cut):
    path = _ledger_path(_chain(chain)[0])
    path.write_bytes(path.read_bytes()[:-cut])
    assert 'ledger' in verify_registrations(chain)[0]
    with pytest.raises(ValueError, match='was changed after it was written'): record_trades(_chain(chain)[0], trades_until(30))


def test_nothing_is_registered_behind_a_broken_chain(chain):
    path = _chain(chain)[0]
    path.write_bytes(path.read_bytes().replace(b'number 0', b'number 9'))
    with pytest.raises(ValueError, match='was changed after it was sealed'): register(RunConfig(), BARS, [1.], folder=chain)


@needs_fork
def test_kills_while_appending_lose_nothing(tmp_path):
    """What was in the ledger and the chain before stays in, and nothing half is seen.

    A process writes without a pause and is killed with SIGKILL, every third time as soon as a half-written file is
    seen, else at a random moment."""
    folder = tmp_path/'registrations'
    path = register(RunConfig(), BARS, [1., -.5], folder=folder)
    rng = random.Random(1)
    done = registered = killed = 0
    halves = set()
    unfinished = lambda: {p.name for p in folder.iterdir() if _UNFINISHED in p.name}
    for kill in range(KILLS):
        if not (child := os.fork()):
            try:
                with open(os.devnull, 'w') as nowhere, contextlib.redirect_stderr(nowhere):
                    for n in range(done + 1, 400):
                        record_trades(path, trades_until(n))
                        if n % 5 == 0: register(RunConfig(), BARS, [1.], folder=folder)
            finally: os._exit(1)
        time.sleep(rng.uniform(0, .025))
        until = time.monotonic() + .2
        while kill % 3 == 0 and unfinished() <= halves and time.monotonic() < until: time.sleep(.0002)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        halves |= unfinished()
        assert verify_registrations(folder) == []
        entries = len(_ledger_path(path).read_bytes().splitlines()) if _ledger_path(path).exists() else 0
        assert entries >= done and len(_chain(folder)) >= registered
        done, registered = entries, len(_chain(folder))
    assert killed > KILLS * .8 and done > 0 and len(halves) > KILLS / 20
    found = record_trades(path, trades_until(400))
    assert found.index.tolist() == DAYS.tolist() and verify_registrations(folder) == []
    print(killed, 'killed,', len(halves), 'in the middle of a file;', done, 'outcomes and', registered, 'registrations were there at the end')


def append_and_register(folder, path, odd):
    for n in range(10): register(RunConfig(), BARS, [1.], folder=folder, note=f'{odd} {n}')
    for n in range(1, 60): record_trades(path, trades_until(n))


@needs_fork
def test_two_processes_at_once_lose_nothing(tmp_path):
    folder = tmp_path/'registrations'
    path = register(RunConfig(), BARS, [1., -.5], folder=folder)
    context = get_context('fork')
    workers = [context.Process(target=append_and_register, args=(folder, path, odd)) for odd in range(2)]
    for w in workers: w.start()
    for w in workers: w.join(120)
    assert [w.exitcode for w in workers] == [0, 0]
    assert len(_chain(folder)) == 21 and verify_registrations(folder) == []
    entries = [json.loads(line)['entry']['date'] for line in _ledger_path(path).read_text().splitlines()]
    assert entries == [str(d.date()) for d in DAYS[:59]]


def test_errors_of_the_monitor_under_daily_looking():
    "1,000 simulations of 500 trades: false stop and false keep at most 5%, for outcomes of other shapes too."
    rng = np.random.default_rng(11)
    shape = (1000, 500)
    lottery = lambda mean: np.where(rng.random(shape) < (mean + .3) / 3.8, 3.5, -.3)
    normal = lambda mean: np.clip(rng.normal(mean, .6, shape), mean - 1.5, mean + 1.5)
    for draw in (lottery, normal):
        promised = draw(.25)
        spread = promised[0].std()
        assert (_log_capital_since(promised, .25, -1, 0., spread) >= np.log(20)).any(axis=1).mean() <= .05
        assert (_log_capital(draw(0.), 0., 1, .25, spread) >= np.log(20)).any(axis=1).mean() <= .05


def test_the_capital_is_that_of_a_gambler_in_plain_python():
    rng = np.random.default_rng(3)
    x = rng.choice([-1., .5, 2.], 60)
    guess, spread, null = .3, 1.1, .2
    for side, worst in ((1, null + 2), (-1, 4 - null)):
        capital, seen = 1., []
        for value in x:
            n = 20 + len(seen)
            mean = (20 * guess + sum(seen)) / n
            variance = (20 * (spread**2 + guess**2) + sum(v * v for v in seen)) / n - mean**2
            stake = side * (mean - null) / (variance + (mean - null)**2)
            capital *= 1 + side * min(max(stake, 0), .75 / worst) * (value - null)
            seen.append(value)
        assert np.exp(_log_capital(x, null, side, guess, spread)[-1]) == pytest.approx(capital)
    since = np.exp(_log_capital_since(x, null, -1, guess, spread)[-1])
    parts = [np.exp(_log_capital(x[s:], null, -1, guess, spread)[-1]) / ((j + 1) * (j + 2)) for j, s in enumerate(range(0, 60, 10))]
    assert since == pytest.approx(sum(parts) + 1 / 7)


def test_a_verdict_does_not_depend_on_what_follows():
    r = np.random.default_rng(4).choice([-1., 1.5], 200)
    whole = monitor_trades(r, [1., -.5, .4])
    for n in (1, 7, 100):
        part = monitor_trades(r[:n], [1., -.5, .4])
        np.testing.assert_allclose(whole.e_none[:n], part.e_none)
        np.testing.assert_allclose(whole.e_promised[:n], part.e_promised)
        np.testing.assert_array_equal(whole.interval[:, :n], part.interval)


def test_the_interval_holds_what_was_expected_although_it_changes():
    "1,000 strategies of 500 trades whose mean falls, rises or swings: missed at some time in at most 5%."
    rng = np.random.default_rng(21)
    n = np.arange(1, 501)
    for mean in (np.repeat([.5, -.5], [120, 380]), np.repeat([-.3, .6], 250), .4 * np.sin(n / 30)):
        expected = np.cumsum(mean) / n
        missed = 0
        for r in np.where(rng.random((1000, 500)) < (mean + 1) / 3, 2., -1.):
            low, high = _confidence_sequence(r, .4, 1.4)
            missed += ((low > expected) | (high < expected)).any()
        assert missed <= 50


def test_a_registration_that_was_sealed_anew_is_named(chain):
    "With another promise, without a part, or as nonsense: a new seal alone helps nobody."
    path = _chain(chain)[1]
    data = path.read_bytes()
    body = data.rpartition(b'seal = "')[0].decode()
    for forged in (body.replace('1.0', '1.5'), body.replace('number = 2\n', ''), 'nonsense\n'):
        path.write_bytes(_sealed(forged).encode())
        said = verify_registrations(chain)
        assert any(path.name in text or 'after another registration' in text for text in said), forged
        with pytest.raises(ValueError): register(RunConfig(), BARS, [1.], folder=chain)
    path.write_bytes(data)
    assert verify_registrations(chain) == []


def test_a_kept_filter_goes_the_whole_way(tmp_path, monkeypatch, capsys):
    "Train, ask for tomorrow's order, register, watch; a filter whose file was changed is named and not run."
    from vpoc_backtest.data import sample_market
    from vpoc_backtest.features import FilterConfig
    from vpoc_backtest.ml_backtest import run_pipeline
    from vpoc_backtest.monitor_cli import _monitor_command, _register_command
    from vpoc_backtest.orders_cli import _orders_command
    from vpoc_backtest.run_config import load_market, read_config
    from vpoc_backtest.training_runs import train_run
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('VPOC_CACHE', str(tmp_path/'cache'))
    bars, vix = sample_market(sessions=1000, edge=.8)
    bars.reset_index().to_parquet('all.parquet')
    bars[:'2016-12-30'].reset_index().to_parquet('known.parquet')
    vix.rename('close').to_csv('vix.csv')
    (tmp_path/'my.toml').write_text('[rules]\nrule = "migration"\n[filter]\narch = "ridge"\ngarch = false\n')
    config = read_config('my.toml')
    assert config.filter == FilterConfig(arch='ridge', garch=False)
    train_run(load_market('known.parquet', 'vix.csv'), config, tmp_path/'TRAINING/first', until='2015-12-31')
    given = dict(config='my.toml', vix='vix.csv', model='latest')
    _orders_command(data='known.parquet', json=True, **given)
    said = json.loads(capsys.readouterr().out)
    order = said['orders'][0]
    run = run_pipeline(load_market('all.parquet', 'vix.csv'), config, model='latest')
    judged = run.filtered.judged[run.filtered.judged.date == said['session']['date']].iloc[0]
    assert [order[c] for c in ('side', 'entry', 'stop', 'target')] == [judged[c] for c in ('side', 'entry', 'stop', 'target')]
    assert order['filter_confidence'] == pytest.approx(judged.confidence, rel=1e-9)
    assert order['lower'] == pytest.approx(judged.lower, rel=1e-9) and order['accepted'] == judged.accepted
    _register_command(data='known.parquet', **given)
    _monitor_command(data='all.parquet', vix='vix.csv')
    trades = run.results['ml'].trades
    known = [json.loads(line)['entry']['date'] for line in next(tmp_path.glob('registrations/*.ledger')).read_text().splitlines()]
    assert known == [str(d.date()) for d in trades.date[trades.date > '2016-12-30']] and len(known)
    file = tmp_path/'TRAINING/first/model/model.json'
    file.write_text(file.read_text().replace('"', ' "', 1))
    with pytest.raises(ValueError, match='model.json was changed after it was registered'):
        _monitor_command(data='all.parquet', vix='vix.csv')
