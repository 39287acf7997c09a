"""A rule in a file of one's own goes everywhere: sweep, null markets, verdict, filter, ledger, run, commands."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from commands import sketched, typed

from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.data import BadData, add_sessions, random_walk
from vpoc_backtest.evidence import examine, placebo_test
from vpoc_backtest.meta_labeling import filter_samples
from vpoc_backtest.ml_backtest import EvidenceConfig, run_pipeline
from vpoc_backtest.own_rules import OwnRule
from vpoc_backtest.run_config import RunConfig, load_market
from vpoc_backtest.signals import make_signals
from vpoc_backtest.sweeps import StudyConfig, sweep
from vpoc_backtest.verdict import verdict_error_rates
from vpoc_backtest.vpoc import session_levels

TEXT = '''
import numpy as np
import pandas as pd

def edges(levels, share=0.5, least=4, both=True):
    orders = []
    for day, today in zip(levels.itertuples(), levels.index[1:]):
        for side, entry in ((1, day.val), (-1, day.vah))[:1 + both]:
            ticks = int(side * (day.vpoc - entry) * share / 0.25)
            if ticks < least: continue
            orders.append({'date': today, 'side': side, 'entry': entry, 'stop': entry - side * ticks * 0.25,
                           'target': day.vpoc, 'known_at': day.last_ts})
    return pd.DataFrame(orders)

def leaky(levels):
    return edges(levels.assign(vpoc=levels.vpoc.shift(-1)).dropna(subset=['vpoc']))

def moody(levels):
    orders = edges(levels)
    return orders[np.random.default_rng().random(len(orders)) < .5]
'''


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('rule')/'mine.py'
    path.write_text(TEXT)
    return path


@pytest.fixture(scope='module')
def bars(): return add_sessions(random_walk(130, bars_per_session=39, seed=5))


def by_hand(levels, share=.5, least=4):
    scope = {}
    exec(TEXT, scope)
    return scope['edges'](levels, share, least)


def test_the_orders_are_those_of_the_function(file, bars):
    levels = session_levels(bars)
    pd.testing.assert_frame_equal(make_signals(levels, OwnRule(f'{file}:edges', share=.4)), by_hand(levels, .4), check_dtype=False)


@pytest.mark.parametrize('jobs', [1, 2])
def test_a_sweep_varies_its_arguments(file, bars, jobs, tmp_path):
    grid = {'share': (.3, .6), 'least': (4, 12)}
    study = StudyConfig(jobs=jobs, part=1, folder=tmp_path)
    found = sweep(bars, grid, OwnRule(f'{file}:edges'), study=study)
    levels = session_levels(bars)
    for row in found.itertuples():
        alone = run_backtest(bars, by_hand(levels, row.share, row.least))
        assert (row.trades, row.total_profit) == (alone.metrics['trades'], pytest.approx(alone.metrics['total_profit']))
    assert found.trades.nunique() > 1


def test_null_markets_verdict_and_neighbours(file, bars):
    rule = OwnRule(f'{file}:edges')
    same = placebo_test(bars, rule, n=19)
    hand = placebo_test(bars, make=lambda levels, rules: by_hand(levels), n=19)
    np.testing.assert_allclose(same.placebos.sharpe, hand.placebos.sharpe)
    found = examine(bars, rule, placebos=19)
    assert found.causality.passed and len(found.swept) == 25 and set(found.grid) == {'share', 'least'}
    rates = verdict_error_rates(bars, rule, n=20)
    assert rates.sentences()


def test_the_filter_learns_from_its_orders(file, bars):
    levels = session_levels(bars)
    rule = OwnRule(f'{file}:edges')
    samples = filter_samples(bars, levels, rules=rule)
    orders = make_signals(levels, rule).merge(samples[['date', 'side']], on=['date', 'side'])
    assert len(orders) == len(samples) > 100
    alone = run_backtest(bars, orders[orders.side == 1].assign(contracts=1), contract=replace(StudyConfig().contract))
    known = samples[samples.side == 1].set_index('date').target.dropna()
    assert set(alone.trades.date) <= set(known.index)
    with pytest.raises(BadData, match='two orders of one side'):
        twice = file.with_name('twice.py')
        twice.write_text(TEXT + '\ndef twice(levels): return pd.concat([edges(levels)] * 2)\n')
        filter_samples(bars, levels, rules=OwnRule(f'{twice}:twice'))


def test_a_run_counts_each_version_once(file, bars, tmp_path):
    data = tmp_path/'bars.parquet'
    bars[['open', 'high', 'low', 'close', 'volume']].to_parquet(data)
    market = load_market(str(data))
    wanted = EvidenceConfig(placebos=19, ledger=tmp_path/'ledger')
    config = RunConfig(rules=OwnRule(f'{file}:edges'))
    elsewhere = tmp_path/'copy.py'
    elsewhere.write_text(TEXT)
    count = lambda: len(pd.read_parquet(tmp_path/'ledger'/'trials.parquet'))
    run = run_pipeline(market, config, evidence=wanted)
    once = count()
    run_pipeline(market, RunConfig(rules=OwnRule(f'{elsewhere}:edges')), evidence=wanted)
    assert count() == once >= 25
    elsewhere.write_text(TEXT + '\n# another version\n')
    run_pipeline(market, RunConfig(rules=OwnRule(f'{elsewhere}:edges')), evidence=replace(wanted, placebos=None))
    assert count() == once + 1 and len(run.results['original'].trades) > 20
    for name, why in (('leaky', 'use the future'), ('moody', 'two answers')):
        with pytest.raises(BadData, match=why): run_pipeline(market, RunConfig(rules=OwnRule(f'{file}:{name}')))


def test_the_command_runs_it_and_runs_it_again_from_its_own_settings(file, bars, tmp_path):
    bars[['open', 'high', 'low', 'close', 'volume']].to_parquet(tmp_path/'bars.parquet')
    (tmp_path/'mine.py').write_text(TEXT)
    plain = ('--data', 'bars.parquet', '--placebo', '0', '--setups', '0', '--model', 'none')
    done = sketched('vpoc_backtest', *plain, '--rule', 'mine.py:edges', '--out', 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path/'mine.py').write_text(TEXT.replace('least=4', 'least=40'))  # the run keeps the text it was made with
    again = sketched('vpoc_backtest', *plain, '--config', 'run/config.toml', '--out', 'again', cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path/'run/trades.csv').read_bytes() == (tmp_path/'again/trades.csv').read_bytes()
    assert json.loads((tmp_path/'run/metrics.json').read_text())['original']['trades'] > 20


@pytest.mark.parametrize('rule, said', [('mine.py:leaky', 'use the future'), ('mine.py:gone', "no function 'gone'"), ('trendy', 'is not known'),
                                        ('mine.py:broken', 'ZeroDivisionError: division by zero (line')])
def test_a_rule_that_cannot_be_used_is_one_line(bars, tmp_path, rule, said):
    bars[['open', 'high', 'low', 'close', 'volume']].to_parquet(tmp_path/'bars.parquet')
    (tmp_path/'mine.py').write_text(TEXT + '\ndef broken(levels): return 1 / 0\n')
    done = typed('vpoc_backtest', '--data', 'bars.parquet', '--rule', rule, '--out', 'run', cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path/'run').exists()


def test_tomorrow_is_as_the_backtest_has_it(file, bars):
    from vpoc_backtest.next_session import next_orders
    rule = OwnRule(f'{file}:edges')
    signals = make_signals(session_levels(bars), rule)
    days = pd.DatetimeIndex(bars.date.unique())
    columns = ['date', 'side', 'entry', 'stop', 'target']
    asked = 0
    for day, after in zip(days[60::9], days[61::9]):
        found = next_orders(bars[bars.date <= day], RunConfig(rules=rule))
        if found.date != after: continue  # the made market trades on holidays
        expected = signals[signals.date == after][columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(found.orders[columns].reset_index(drop=True), expected, check_dtype=False)
        asked += 1
    assert asked >= 5
    with pytest.raises(BadData, match='use the future'): next_orders(bars, RunConfig(rules=OwnRule(f'{file}:leaky')))


def test_a_registration_keeps_the_rule(file, bars, tmp_path):
    from vpoc_backtest.monitor import register, verify_registrations
    from vpoc_backtest.run_config import read_config
    config = RunConfig(rules=OwnRule(f'{file}:edges', share=.4))
    path = register(config, bars, [1., -1., .5], folder=tmp_path/'chain')
    assert verify_registrations(tmp_path/'chain') == []
    kept = read_config(path.with_suffix('.config.toml')).rules
    assert kept.share == .4 and kept.orders(session_levels(bars)).equals(config.rules.orders(session_levels(bars)))
    rule = path.with_suffix('.rule.py')
    rule.write_text(TEXT.replace('0.25', '0.5'))
    assert verify_registrations(tmp_path/'chain') == [f'rule {rule.name} was changed after it was registered']
    rule.unlink()
    assert verify_registrations(tmp_path/'chain') == [f'rule {rule.name} is missing']
