"""Null markets and the ledger on several processes; leaks in a single order, on bars and by night."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, delayed

from vpoc_backtest.causality import check_causality, check_orders
from vpoc_backtest.data import add_sessions, random_walk
from vpoc_backtest.evidence import placebo_test
from vpoc_backtest.multiple_testing import _load_trials, record_trial
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.sweeps import StudyConfig
from vpoc_backtest.verdict import verdict_error_rates
from vpoc_backtest.vpoc import session_levels

PLAIN = SignalRules(rule='migration')


def test_placebos_do_not_depend_on_processes():
    bars = add_sessions(random_walk(90, bars_per_session=13))
    on_two, on_one = (placebo_test(bars, PLAIN, n=4, study=StudyConfig(jobs=jobs)).placebos for jobs in (2, 1))
    assert on_two.equals(on_one)


@pytest.mark.parametrize('null', ['drift', 'block'])
def test_columns_that_prices_do_not_tell_reach_other_processes(null):
    "A roll, and sessions that are not complete: workers have these columns of the levels too."
    bars = add_sessions(random_walk(90, bars_per_session=13))
    late = (bars.date > bars.date.iloc[600]).to_numpy()
    bars = bars.assign(complete=bars.date.dt.day != 4, offset=np.where(late, 7., 0.),
                       contract=np.where(late, 'ES 06-15', 'ES 03-15'))
    on_two, on_one = (placebo_test(bars, PLAIN, n=6, null=null, study=StudyConfig(jobs=jobs)).placebos for jobs in (2, 1))
    assert on_two.equals(on_one)


def test_error_rates_do_not_depend_on_processes():
    bars = add_sessions(random_walk(90, bars_per_session=4))
    bars = bars.assign(complete=bars.date.dt.day != 4)
    on_two, on_one = (verdict_error_rates(bars, PLAIN, n=20, study=StudyConfig(jobs=jobs)) for jobs in (2, 1))
    assert on_two.given.equals(on_one.given) and on_two.best.equals(on_one.best)


def write_ten(folder, first):
    "Record ten trials, of which five are different; return the counts."
    days = pd.bdate_range('2020-01-01', periods=30)
    numbers = []
    for i in range(first, first + 10):
        returns = pd.Series(np.random.default_rng(i % 5).normal(size=30), days)
        numbers.append(record_trial(folder, 'abc', {'i': i}, i / 100, 40, returns).number)
    return numbers


def test_two_processes_write_one_ledger(tmp_path):
    "Every trial twice, while this process reads: none is lost or counted twice, no reading goes back."
    seen, told = [], []
    writers = (delayed(write_ten)(tmp_path, first) for first in range(0, 50, 5))
    for numbers in Parallel(n_jobs=2, return_as='generator_unordered')(writers):
        seen.append(_load_trials(tmp_path, 'abc').number)
        told += numbers
    final = _load_trials(tmp_path, 'abc')
    assert seen == sorted(seen) and min(told) <= 2 and max(told) == 55 == final.number
    assert final.effective == pytest.approx(5, abs=.5) and final.variance == 0
    assert not list(Path(tmp_path).glob('trials.parquet/.*'))


def orders_of(bars):
    return make_signals(session_levels(bars), PLAIN)


def peek(bars, date, what):
    "The orders of the rule; that of `date` uses a figure of its own session."
    orders, day = orders_of(bars), bars[(bars.date == date) & (bars.segment == 'RTH')]
    own = (orders.date == date).to_numpy()
    if not own.any(): return orders
    rise = day.close.iloc[-1] - day.open.iloc[0]
    if what == 'close': return orders.assign(target=orders.target + own * rise)
    if what == 'won': return orders[~own | (orders.side * rise > 0)]
    limit = orders.entry[own].iloc[0]
    reached = ((day.low <= limit) & (day.high >= limit)).any()
    if what == 'reached': return orders.assign(size_factor=orders.size_factor - own * .1 * reached)
    days = (bars.date.iloc[-1] - date).days  # how long the file is
    return orders.assign(confidence=orders.confidence + own * days * 1e-9)


@pytest.fixture(scope='module')
def market():
    "Bars of 100 sessions with an evening bar each, and the orders."
    bars = random_walk(100, bars_per_session=13, seed=2)
    night = bars.tz_convert(None).iloc[::13].tz_localize('UTC').tz_convert(bars.index.tz)
    night.index -= pd.Timedelta(hours=3)
    bars = add_sessions(pd.concat([bars, night]).sort_index())
    return bars, orders_of(bars)


@pytest.mark.parametrize('what', ['close', 'won', 'reached', 'length'])
def test_one_leaking_order_is_found_on_bars(market, what):
    bars, orders = market
    won = [d for d in orders.date if len(peek(bars, d, 'won')) == len(orders)]
    for date in np.random.default_rng(0).choice(won, 1):
        found = check_orders(lambda b: peek(b, pd.Timestamp(date), what), bars)
        assert found.tested == len(orders) and not found.passed and found.changed >= 1
        assert pd.Timestamp(date) == found.leaks['first'].max()


def test_orders_do_not_depend_on_processes(market):
    bars, orders = market
    on_two, on_one = (check_orders(orders_of, bars, jobs=jobs) for jobs in (2, 1))
    assert on_one.passed and on_two.passed and on_one.tested == on_two.tested == len(orders)
    date = orders.date.iloc[30]
    leak = [check_orders(lambda b: peek(b, date, 'close'), bars, jobs=jobs).leaks for jobs in (2, 1)]
    assert len(leak[0]) and leak[0].equals(leak[1])


def test_known_at_is_tested(market):
    "An order that rests on the evening before passes if it says so, and fails if it claims the close before."
    bars, orders = market
    evening = bars[bars.segment == 'ETH'].groupby('date')

    def with_evening(bars, say):
        orders, night = orders_of(bars), bars[bars.segment == 'ETH'].reset_index(names='ts')
        last = night.groupby('date').agg(close=('close', 'last'), ts=('ts', 'last')).reindex(orders.date)
        known = last.ts.array if say else orders.known_at.array
        return orders.assign(confidence=last.close.to_numpy(), known_at=pd.DatetimeIndex(known))

    assert len(evening) > 90
    assert check_orders(lambda b: with_evening(b, True), bars).passed
    assert 'confidence' in check_orders(lambda b: with_evening(b, False), bars).leaks.index


def test_a_rule_that_fails_without_its_future_does_not_pass():
    levels = session_levels(add_sessions(random_walk(60, bars_per_session=5)))

    def last_day_needed(l):
        if l.index[-1] < levels.index[-1]: raise KeyError('no such day')
        return l[['close']].shift()

    leaks = check_causality(last_day_needed, levels, dates=5)
    assert leaks.index.tolist() == ['(error)'] and 'KeyError' in leaks.by.iloc[0]
    found = check_orders(lambda l: last_day_needed(l).reset_index(), levels)
    assert not found.passed and 'an error instead of an answer' in found.summary()
