"""The compiled engine and the plain one, on a thousand made markets with evenings, rolls, ruin and several orders a session."""
import random

import pandas as pd
import pytest
from plain_engine import plain_backtest
from test_plain_engine import random_case
from vpoc_backtest.backtest import EXITS, SKIPS, BacktestConfig, run_backtest

COLUMNS = ['date', 'side', 'contracts', 'entry_ts', 'entry', 'exit_ts', 'exit', 'exit_reason', 'gross', 'costs', 'net', 'r_multiple', 'mae', 'mfe', 'bars', 'ambiguous']


def cases(seed, n):
    rng = random.Random(seed)
    for _ in range(n):
        bars, orders, settings = random_case(rng)
        if bars.empty or orders.empty or not (bars.segment == 'RTH').any(): continue
        index = pd.date_range('2024-01-01', periods=len(bars), freq='min', tz='America/New_York', name='ts')
        yield bars.set_index(index).assign(date=pd.to_datetime(bars.date).to_numpy(), volume=100), orders.assign(date=pd.to_datetime(orders.date)), settings


def test_twins_agree():
    seen = set()
    for bars, orders, settings in cases(seed=2, n=1500):
        trades, skipped, equity = plain_backtest(bars, orders, **settings)
        result = run_backtest(bars, orders, BacktestConfig(**settings))
        slow = pd.DataFrame(trades, columns=['signal', *COLUMNS])[COLUMNS]
        assert len(result.trades) == len(slow)
        if len(slow): pd.testing.assert_frame_equal(result.trades[COLUMNS], slow, check_exact=False, rtol=0, atol=1e-9, check_dtype=False, check_index_type=False)
        assert result.skipped.reason.tolist() == [s['reason'] for s in skipped]
        assert result.equity.tolist() == pytest.approx(equity, abs=1e-6)
        seen |= set(result.trades.exit_reason) | set(result.skipped.reason)
    assert len(seen) == len(EXITS) - 1 + len(SKIPS) - 1, 'every kind of exit and every reason for none must have occurred'
