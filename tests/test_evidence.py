"""What needs several processes: placebos on two of them, and a ledger that two of them write."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, delayed
from vpoc_backtest.data import add_sessions, random_walk
from vpoc_backtest.evidence import placebo_test
from vpoc_backtest.luck import record_trial, trials_of
from vpoc_backtest.signals import SignalRules


def test_placebos_do_not_depend_on_processes():
    bars = add_sessions(random_walk(90, bars_per_session=13))
    on_two, on_one = (placebo_test(bars, SignalRules(rule='migration'), n=4, jobs=jobs).placebos for jobs in (2, 1))
    assert on_two.equals(on_one)


def write_ten(folder, first):
    days = pd.bdate_range('2020-01-01', periods=30)
    made = [pd.Series(np.random.default_rng(i % 5).normal(size=30), days) for i in range(first, first + 10)]  # five different, over and over
    return [record_trial(folder, 'abc', {'i': i}, i / 100, 40, r).number for i, r in zip(range(first, first + 10), made)]


def test_two_processes_write_one_ledger(tmp_path):
    "Every trial twice, while this process reads: none is lost, none counted twice, and no reading fails or goes back."
    seen, told = [], []
    for numbers in Parallel(n_jobs=2, return_as='generator_unordered')(delayed(write_ten)(tmp_path, first) for first in range(0, 50, 5)):
        seen.append(trials_of(tmp_path, 'abc').number)
        told += numbers
    final = trials_of(tmp_path, 'abc')
    assert seen == sorted(seen) and min(told) <= 2 and max(told) == 55 == final.number
    assert final.effective == pytest.approx(5, abs=.5) and final.variance == 0
    assert not list(Path(tmp_path).glob('trials.parquet/.*'))
