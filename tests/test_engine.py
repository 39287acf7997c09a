"""The compiled engine against the plain one, and the memory that the compiled loops allocate.

Both run on thousands of made markets with evenings, rolls, ruin and orders of every kind.
"""
import random

import numpy as np
import pandas as pd
import pytest
from numba import njit
from numba.core.runtime import _nrt_python, rtsys
from plain_engine import plain_backtest
from test_plain_engine import random_case, with_times

from vpoc_backtest import backtest, profiles, vpoc
from vpoc_backtest.backtest import BacktestConfig, run_backtest
from vpoc_backtest.data import ES, add_sessions, random_walk
from vpoc_backtest.fills import _EXITS, _SKIPS
from vpoc_backtest.rolls import front_month
from vpoc_backtest.signals import SignalRules, make_signals

COLUMNS = ['date', 'side', 'contracts', 'entry_ts', 'entry', 'exit_ts', 'exit', 'exit_reason', 'gross',
           'costs', 'net', 'r_multiple', 'mae', 'mfe', 'bars', 'ambiguous', 'slippage']


def cases(seed, n):
    rng = random.Random(seed)
    for _ in range(n):
        bars, orders, settings = random_case(rng)
        if bars.empty or orders.empty or not (bars.segment == 'RTH').any(): continue
        index = pd.date_range('2024-01-01', periods=len(bars), freq='min', tz='America/New_York', name='ts')
        bars = bars.set_index(index).assign(date=pd.to_datetime(bars.date).to_numpy(), volume=100)
        orders = with_times(bars, orders.assign(date=pd.to_datetime(orders.date)))
        yield bars, orders.assign(entry_type=np.where(orders.entry.isna(), 'market', 'limit')), settings


def test_twins_agree():
    seen, kinds = set(), dict.fromkeys(('market', 'named', 'late', 'marketable'), 0)
    for bars, orders, settings in cases(seed=2, n=1000):
        trades, skipped, equity = plain_backtest(bars, orders, **settings)
        result = run_backtest(bars, orders, BacktestConfig(**settings))
        slow = pd.DataFrame(trades, columns=['signal', *COLUMNS])[COLUMNS]
        assert len(result.trades) == len(slow)
        if len(slow):
            pd.testing.assert_frame_equal(result.trades[COLUMNS], slow, check_exact=False, rtol=0, atol=1e-9,
                                          check_dtype=False, check_index_type=False)
        assert result.skipped.reason.tolist() == [s['reason'] for s in skipped]
        assert result.equity.tolist() == pytest.approx(equity, abs=1e-6)
        entry = orders.iloc[[t['signal'] for t in trades]]
        kinds['market'] += (entry.entry_type == 'market').sum()
        kinds['named'] += entry.contracts.notna().sum()
        kinds['late'] += entry.active_from.notna().sum()
        ticks = result.trades.slippage / result.trades.contracts / 12.5  # of which the exit paid its own
        at_exit = settings['slippage_ticks'] * (result.trades.exit_reason != 'target')
        kinds['marketable'] += int((ticks > at_exit).sum())
        seen |= set(result.trades.exit_reason) | set(result.skipped.reason)
    print(kinds)
    assert min(kinds.values()) > 100
    every = len(_EXITS) - 1 + len(_SKIPS) - 1
    assert len(seen) == every, 'every kind of exit and every reason for none must have occurred'


@pytest.fixture
def allocated(monkeypatch):
    "Loop → how often its last call allocated memory, by numba's own count."
    counts = {}
    def watch(place, name):
        loop = getattr(place, name)
        def call(*args):
            before = rtsys.get_allocation_stats().alloc
            found = loop(*args)
            counts[name] = rtsys.get_allocation_stats().alloc - before
            return found
        monkeypatch.setattr(place, name, call)
    loops = {profiles: ('_extremes', '_fill'), vpoc: ('_levels', '_means'), backtest: ('_run',)}
    for place, names in loops.items():
        for name in names: watch(place, name)
    on = _nrt_python.memsys_stats_enabled()
    _nrt_python.memsys_enable_stats()
    yield counts
    if not on: _nrt_python.memsys_disable_stats()


def test_the_count_of_allocations_counts(allocated):
    @njit
    def wasteful(n):
        total = 0.
        for i in range(n): total += np.ones(i + 1).sum()
        return total
    before = rtsys.get_allocation_stats().alloc
    assert wasteful(50) == 1275 and rtsys.get_allocation_stats().alloc - before == 50


@pytest.mark.parametrize('spread, area, hold', [
    ('uniform', 'single', 'session'), ('ohlc', 'pairs', 'overnight'), ('close', 'single', 'session')])
def test_loops_allocate_nothing_inside(allocated, spread, area, hold):
    "Ten times the sessions, or ten times the bars in each, and not one allocation more."
    found, trades = [], []
    for sessions, bars_per_session in ((100, 39), (1000, 39), (100, 390)):
        bars = add_sessions(random_walk(sessions, bars_per_session=bars_per_session, seed=1))
        levels = vpoc.session_levels(bars, spread=spread, area=area)
        orders = make_signals(levels, SignalRules(rule='migration', min_confidence=0))
        trades.append(len(run_backtest(bars, orders, BacktestConfig(hold=hold)).trades))
        found.append(dict(allocated))
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == {'_extremes', '_fill', '_levels', '_means', '_run'}
    assert trades[1] > 5 * trades[0] > 0 and max(found[0].values()) < 30


def test_a_runs_own_signals_can_be_fed_back(tmp_path):
    "signals.csv, as the command writes it, makes the trades of the run; also with a filter's columns."
    from vpoc_backtest.ml_backtest import _tables, run_pipeline
    from vpoc_backtest.run_config import _NO_REJECTS, MarketData, RunConfig
    made = front_month(random_walk(120, seed=2))
    data = MarketData('a random walk', 'made here', made, len(made), _NO_REJECTS, None, ES)
    run = run_pipeline(data, RunConfig(rules=SignalRules(rule='migration')))
    result, table = run.results['original'], _tables(run)['signals']
    assert len(result.trades)
    said = {'filter_confidence': 50., 'expectation': .1, 'spread': .2, 'trained_until': '2014-06-02',
            'accepted': True}
    for written in (table, table.assign(**said)):
        written.to_csv(tmp_path/'signals.csv', index=False)
        again = run_backtest(run.market.bars, pd.read_csv(tmp_path/'signals.csv'))
        pd.testing.assert_frame_equal(again.trades, result.trades)
